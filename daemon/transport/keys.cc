// SPDX-License-Identifier: Apache-2.0
#include "daemon/transport/keys.h"

#include <sys/stat.h>
#include <zmq.h>

#include <cerrno>
#include <string_view>
#include <vector>

#include "ledger/base/file_system.h"
#include "ledger/base/ids.h"

namespace holdfast {
namespace {

constexpr size_t kKeyChars = 40, kNameMax = 64, kFilesMax = 8192;
constexpr std::string_view kPublic = ".public", kSecret = ".secret";

std::string PublicFile(const std::string& dir, const std::string& name) { return JoinPath(dir, name) + std::string(kPublic); }
std::string SecretFile(const std::string& dir, const std::string& name) { return JoinPath(dir, name) + std::string(kSecret); }
std::string Keygen(const std::string& dir) { return "jobctl --root " + DirName(dir) + " keygen"; }

Status CheckKeyName(const std::string& name) {
  constexpr std::string_view kAlnum = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  const bool ok = !name.empty() && name.size() <= kNameMax && kAlnum.find(name[0]) != std::string_view::npos &&
                  name.find_first_not_of(std::string(kAlnum) + "_.-") == std::string::npos;
  if (!ok) return InvalidArgument("\"" + name + "\" cannot name keys: letters, digits, '_', '.' and '-', at most 64, a letter or digit first");
  return OkStatus();
}

bool IsZ85(std::string_view key) {
  constexpr std::string_view kAlphabet = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";
  uint8_t raw[32];
  return key.size() == kKeyChars && key.find_first_not_of(kAlphabet) == std::string_view::npos &&
         zmq_z85_decode(raw, std::string(key).c_str()) != nullptr;
}

// Nobody but the owner may look into, or put a key into, what holds the secrets.
Status CheckPrivate(const std::string& path, const char* chmod) {
  struct stat st {};
  if (::stat(path.c_str(), &st) != 0) return ErrnoError(errno, "stat of " + path);
  if ((st.st_mode & 077) == 0) return OkStatus();
  return InvalidArgument(path + " is open to others than its owner, and secret keys must not be: chmod " + chmod + " " + path);
}

Result<std::string> ReadKey(const std::string& path) {
  PosixFileSystem fs;
  HOLDFAST_ASSIGN(const Bytes data, fs.ReadFile(path, 64));
  std::string_view text = AsText(data);
  if (!text.empty() && text.back() == '\n') text.remove_suffix(1);
  if (!IsZ85(text)) return Corrupt(path + ": not a key (40 characters of Z85)");
  return std::string(text);
}

Result<std::string> PublicOf(const std::string& secret, const std::string& secret_file) {
  char key[kKeyChars + 1];
  if (zmq_curve_public(key, secret.c_str()) != 0) return ErrnoError(errno, "public key of " + secret_file);
  return std::string(key);
}

// Gives a private, complete file its name. Somebody else's file of that name stays, and that is fine.
Status PublishKey(const std::string& dir, const std::string& path, const std::string& key) {
  PosixFileSystem fs;
  const std::string temp = JoinPath(dir, ".new-" + Nonce::Random().Hex());
  const auto write = [&]() -> Status {
    HOLDFAST_ASSIGN(auto file, fs.Create(temp, 0600));
    HOLDFAST_TRY(file->Append(AsBytes(key + "\n")));
    HOLDFAST_TRY(file->Sync());
    return file->Close();
  };
  Status done = write();
  if (done.ok()) {
    done = fs.Link(temp, path);
    if (!done.ok() && done.code() != ErrorCode::kAlreadyExists) done = fs.RenameExclusive(temp, path);  // no hard links here
  }
  (void)fs.Unlink(temp);
  if (!done.ok() && done.code() != ErrorCode::kAlreadyExists) return done;
  return fs.SyncDir(dir);
}

struct Present {
  bool public_file = false, secret_file = false;
};
// By listing, which looks at the server again: a name that another node made a moment ago may be "missing" for stat(2).
Result<Present> Look(const std::string& dir, const std::string& name) {
  PosixFileSystem fs;
  HOLDFAST_ASSIGN(const auto files, fs.List(dir));
  Present p;
  for (const std::string& f : files) {
    p.public_file |= f == name + std::string(kPublic);
    p.secret_file |= f == name + std::string(kSecret);
  }
  return p;
}

Status MakeDir(const std::string& dir) {
  PosixFileSystem fs;
  HOLDFAST_TRY(fs.MakeDirs(DirName(dir)));
  if (::mkdir(dir.c_str(), 0700) != 0 && errno != EEXIST) return ErrnoError(errno, "making directory " + dir);
  return CheckPrivate(dir, "700");
}

Result<CurveKeys> ReadPair(const std::string& dir, const std::string& name) {
  CurveKeys keys;
  HOLDFAST_TRY(CheckPrivate(SecretFile(dir, name), "600"));
  HOLDFAST_ASSIGN(keys.secret_key, ReadKey(SecretFile(dir, name)));
  HOLDFAST_ASSIGN(keys.public_key, ReadKey(PublicFile(dir, name)));
  HOLDFAST_ASSIGN(const std::string derived, PublicOf(keys.secret_key, SecretFile(dir, name)));
  if (derived != keys.public_key) {
    return Corrupt(PublicFile(dir, name) + " is not the public key of " + SecretFile(dir, name) + ": remove the wrong one, then " + Keygen(dir));
  }
  return keys;
}

}  // namespace

Status MakeKeys(const std::string& keys_dir, const std::string& name) {
  HOLDFAST_TRY(CheckKeyName(name));
  HOLDFAST_TRY(MakeDir(keys_dir));
  HOLDFAST_ASSIGN(const Present there, Look(keys_dir, name));
  if (!there.secret_file) {
    if (there.public_file) {
      return InvalidArgument(PublicFile(keys_dir, name) + " is there without its secret: remove it to make a new pair, then " + Keygen(keys_dir));
    }
    char public_key[kKeyChars + 1], secret_key[kKeyChars + 1];
    if (zmq_curve_keypair(public_key, secret_key) != 0) return ErrnoError(errno, "making a CURVE key pair (is libzmq built with CURVE?)");
    HOLDFAST_TRY(PublishKey(keys_dir, SecretFile(keys_dir, name), secret_key));
  }
  // The secret is published first and the public key made from the one that won, so a death in between, or a twin, leaves a true pair.
  HOLDFAST_TRY(CheckPrivate(SecretFile(keys_dir, name), "600"));
  HOLDFAST_ASSIGN(const std::string secret, ReadKey(SecretFile(keys_dir, name)));
  HOLDFAST_ASSIGN(const std::string derived, PublicOf(secret, SecretFile(keys_dir, name)));
  HOLDFAST_TRY(PublishKey(keys_dir, PublicFile(keys_dir, name), derived));
  const auto pair = ReadPair(keys_dir, name);
  return pair.ok() ? OkStatus() : Status(pair.error());
}

Result<std::optional<CurveKeys>> ReadKeys(const std::string& keys_dir, const std::string& name) {
  HOLDFAST_TRY(CheckKeyName(name));
  PosixFileSystem fs;
  HOLDFAST_ASSIGN(const bool there, fs.Exists(keys_dir));
  if (!there) return std::optional<CurveKeys>();
  HOLDFAST_TRY(CheckPrivate(keys_dir, "700"));
  HOLDFAST_ASSIGN(const Present present, Look(keys_dir, name));
  if (!present.secret_file || !present.public_file) {
    return NotFound("there are keys in " + keys_dir + ", but no pair of " + name + ": make it with " + Keygen(keys_dir));
  }
  HOLDFAST_ASSIGN(CurveKeys keys, ReadPair(keys_dir, name));
  return std::optional<CurveKeys>(std::move(keys));
}

Result<std::map<std::string, std::string>> AllowedKeys(const std::string& keys_dir) {
  PosixFileSystem fs;
  HOLDFAST_ASSIGN(const auto files, fs.List(keys_dir));
  HOLDFAST_TRY(CheckPrivate(keys_dir, "700"));
  if (files.size() > kFilesMax) return Exhausted(keys_dir + ": " + std::to_string(files.size()) + " files, more than the " + std::to_string(kFilesMax) + " expected");
  std::map<std::string, std::string> allowed;
  for (const std::string& file : files) {
    if (!file.ends_with(kPublic)) continue;
    const std::string name = file.substr(0, file.size() - kPublic.size());
    if (!CheckKeyName(name).ok()) continue;
    if (auto key = ReadKey(JoinPath(keys_dir, file)); key.ok()) allowed[*key] = name;
  }
  return allowed;
}

}  // namespace holdfast
