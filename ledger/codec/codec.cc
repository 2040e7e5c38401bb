// SPDX-License-Identifier: Apache-2.0
//
// The only file that includes zstd. One frame a payload, single-shot API, content size and checksum always present.
#include "ledger/codec/codec.h"

#include <zstd.h>

#include <memory>
#include <string>

namespace holdfast {
namespace {

// A block of zstd takes 4 bytes at least and makes 128 KiB at most.
constexpr uint64_t kExpansionMax = (128u << 10) / 4;
constexpr int kLevel = 1;  // on split planes level 1 beats level 3 in ratio and speed; docs/ledger-format.md, "Codecs"

struct FreeCCtx {
  void operator()(ZSTD_CCtx* c) const { ZSTD_freeCCtx(c); }
};

ZSTD_CCtx* ThreadContext() {
  thread_local std::unique_ptr<ZSTD_CCtx, FreeCCtx> context(ZSTD_createCCtx());
  HOLDFAST_CHECK(context != nullptr);
  ZSTD_CCtx_reset(context.get(), ZSTD_reset_session_and_parameters);
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_compressionLevel, kLevel);
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_contentSizeFlag, 1);
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_checksumFlag, 1);
  return context.get();
}

// A frame of `raw`, or nothing if it is not at least 2 % smaller.
Bytes CompressIfUseful(ByteSpan raw) {
  Bytes out(ZSTD_compressBound(raw.size()));
  const size_t n = ZSTD_compress2(ThreadContext(), out.data(), out.size(), raw.data(), raw.size());
  if (ZSTD_isError(n) || n > raw.size() - raw.size() / 50) return {};
  out.resize(n);
  out.shrink_to_fit();
  return out;
}

// bf16 value = sign 1 | exponent 8 | mantissa 7, little-endian. Plane 0: exponents; plane 1: sign and mantissa.
void SplitBf16(ByteSpan raw, uint8_t* out) {
  const size_t n = raw.size() / 2;
  for (size_t i = 0; i < n; ++i) {
    const unsigned v = raw[2 * i] | raw[2 * i + 1] << 8;
    out[i] = static_cast<uint8_t>(v >> 7);
    out[n + i] = static_cast<uint8_t>((v >> 8 & 0x80) | (v & 0x7f));
  }
}

void JoinBf16(ByteSpan planes, std::span<uint8_t> out) {
  const size_t n = out.size() / 2;
  for (size_t i = 0; i < n; ++i) {
    const unsigned e = planes[i], m = planes[n + i];
    const unsigned v = (m & 0x80) << 8 | e << 7 | (m & 0x7f);
    out[2 * i] = static_cast<uint8_t>(v);
    out[2 * i + 1] = static_cast<uint8_t>(v >> 8);
  }
}

void SplitF32(ByteSpan raw, uint8_t* out) {
  const size_t n = raw.size() / 4;
  for (size_t i = 0; i < n; ++i) {
    for (size_t k = 0; k < 4; ++k) out[k * n + i] = raw[4 * i + k];
  }
}

void JoinF32(ByteSpan planes, std::span<uint8_t> out) {
  const size_t n = out.size() / 4;
  for (size_t i = 0; i < n; ++i) {
    for (size_t k = 0; k < 4; ++k) out[4 * i + k] = planes[k * n + i];
  }
}

// Everything about the frame is checked before a byte of it is expanded: one frame, nothing behind it, the size that the
// caller already has room for, a checksum.
Status DecodeFrame(ByteSpan encoded, std::span<uint8_t> out) {
  constexpr size_t kDescriptor = 4;  // byte of the frame header that holds the flags
  if (encoded.size() <= kDescriptor || ZSTD_getFrameContentSize(encoded.data(), encoded.size()) != out.size()) {
    return Corrupt("zstd frame does not announce " + std::to_string(out.size()) + " bytes");
  }
  if ((encoded[kDescriptor] & 0x04) == 0) return Corrupt("zstd frame without a checksum");
  if (ZSTD_findFrameCompressedSize(encoded.data(), encoded.size()) != encoded.size()) {
    return Corrupt("zstd frame is cut short, or bytes follow it");
  }
  const size_t n = ZSTD_decompress(out.data(), out.size(), encoded.data(), encoded.size());
  if (ZSTD_isError(n)) return Corrupt(std::string("zstd: ") + ZSTD_getErrorName(n));
  if (n != out.size()) return Corrupt("zstd frame holds fewer bytes than it announces");
  return OkStatus();
}

size_t PlaneUnit(Codec codec) { return codec == Codec::kBf16Planes ? 2 : codec == Codec::kF32Planes ? 4 : 1; }

}  // namespace

Encoded Encode(Codec wanted, ByteSpan raw) {
  if (wanted == Codec::kStored || raw.empty() || raw.size() % PlaneUnit(wanted) != 0) return {};
  Encoded result{wanted, {}};
  if (wanted == Codec::kZstd) {
    result.bytes = CompressIfUseful(raw);
  } else {
    Bytes planes(raw.size());
    wanted == Codec::kBf16Planes ? SplitBf16(raw, planes.data()) : SplitF32(raw, planes.data());
    result.bytes = CompressIfUseful(planes);
  }
  if (result.bytes.empty()) result.codec = Codec::kStored;
  return result;
}

Status CheckEncoded(Codec codec, ByteSpan encoded, uint64_t raw_len) {
  if (codec == Codec::kStored) {
    if (encoded.size() != raw_len) return Corrupt("stored payload of another length than its header says");
    return OkStatus();
  }
  if (codec > Codec::kF32Planes) return Corrupt("unknown codec " + std::to_string(static_cast<int>(codec)));
  if (raw_len % PlaneUnit(codec) != 0) return Corrupt("planes of a length that is no multiple of the element size");
  if (ZSTD_getFrameContentSize(encoded.data(), encoded.size()) != raw_len) {
    return Corrupt("zstd frame does not announce " + std::to_string(raw_len) + " bytes");
  }
  if (raw_len / kExpansionMax > encoded.size()) {
    return Corrupt("zstd frame of " + std::to_string(encoded.size()) + " bytes announces " + std::to_string(raw_len) + ", more than it can hold");
  }
  return OkStatus();
}

Status Decode(Codec codec, ByteSpan encoded, std::span<uint8_t> out) {
  HOLDFAST_TRY(CheckEncoded(codec, encoded, out.size()));
  if (codec == Codec::kStored) {
    if (!out.empty()) std::memcpy(out.data(), encoded.data(), out.size());
    return OkStatus();
  }
  if (codec == Codec::kZstd) return DecodeFrame(encoded, out);
  const auto room = std::make_unique_for_overwrite<uint8_t[]>(out.size());
  const std::span<uint8_t> planes(room.get(), out.size());
  HOLDFAST_TRY(DecodeFrame(encoded, planes));
  codec == Codec::kBf16Planes ? JoinBf16(planes, out) : JoinF32(planes, out);
  return OkStatus();
}

}  // namespace holdfast
