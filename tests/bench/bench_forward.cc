// SPDX-License-Identifier: Apache-2.0
//
// bench_forward MODEL_DIR [samples=8] [tokens=512] [threads=2] [device=cpu]: the forward pass with observation, beside plain bf16 matmuls of torch
// of the same shapes in one run: on a CPU alternately, in CPU time of the threads (machines are shared; ratios hold, seconds do not), on a GPU
// afterwards, by the clock.
//
// Last numbers (EPYC with avx512_bf16, 2 cores, libtorch 1.13.0): see docs/adr/0014-forward-numerics.md.
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "calib/model/decoder.h"
#include "calib/runner/runner.h"
#include "ledger/base/clock.h"
#include "tests/bench/torch_matmul.h"

namespace holdfast {
namespace {

template <class T>
T Must(Result<T> r) {
  if (!r.ok()) {
    std::fprintf(stderr, "%s\n", r.error().message.c_str());
    std::exit(1);
  }
  return std::move(r).value();
}

struct Args {
  std::string dir;
  uint32_t samples = 8, tokens = 512, threads = 2;
  std::string device = "cpu";
};

// Products of one layer: fused as the runner has them.
struct Product {
  uint64_t k, n;
};
std::vector<Product> Products(const DecoderSpec& s) {
  std::vector<Product> out(4, {0, 0});
  for (const LinearSpec& l : LayerLinears(s)) {
    Product& p = out[static_cast<size_t>(l.input)];
    p.k = l.cols;
    p.n += l.rows;
  }
  return out;
}

double LinearFlops(const DecoderSpec& s, uint64_t tokens) {
  double flops = 0;
  for (const Product& p : Products(s)) flops += 2.0 * static_cast<double>(tokens) * static_cast<double>(p.k) * static_cast<double>(p.n);
  return flops * s.layers;
}

// Of the linears of one sample.
double TorchSeconds(const DecoderSpec& s, uint64_t tokens, const std::string& device) {
  double seconds = 0;
  for (const Product& p : Products(s)) {
    const auto m = static_cast<int64_t>(tokens), k = static_cast<int64_t>(p.k), n = static_cast<int64_t>(p.n);
    seconds += device == "cpu" ? TimeTorchMatmul(m, k, n, 10) : TimeTorchMatmulOn(device, m, k, n, 200);
  }
  return seconds * s.layers;
}

std::vector<int32_t> Sample(uint32_t seed, uint32_t tokens, uint64_t vocab) {
  std::vector<int32_t> ids(tokens);
  uint64_t state = seed + 1;
  for (int32_t& id : ids) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    id = static_cast<int32_t>((state >> 33) % vocab);
  }
  return ids;
}

int Main(const Args& args) {
  PosixFileSystem fs;
  RealClock clock;
  const Bytes text = Must(fs.ReadFile(args.dir + "/config.json"));
  const DecoderSpec spec = Must(ParseDecoder(Must(ParseJson(AsText(text), "config.json")), "config.json"));
  const auto source = Must(SourceModel::Open(fs, args.dir));
  const Plan plan = Must(BindModel(spec, Recipe::kNvfp4, *source));
  RunnerOptions options;
  options.last_layer = spec.layers;
  options.load_threads = args.threads;
  options.device = args.device;
  const uint64_t t0 = clock.MonotonicNs();
  const auto runner = Must(LayerRangeRunner::Load(*source, spec, plan, options, nullptr));
  std::printf("%s; loaded in %.2f s\n", NumericsClass(args.device).c_str(), static_cast<double>(clock.MonotonicNs() - t0) * 1e-9);

  // The first sample of a shape also pays for torch's start and for kernels that oneDNN generates.
  const double cold = ThreadCpuSeconds();
  Must(runner->ForwardTokens(Sample(0, args.tokens, spec.vocab), LayerRangeRunner::Output::kNone));
  std::printf("first sample: %.1f ms of CPU\n", 1e3 * (ThreadCpuSeconds() - cold));

  std::vector<double> forward(args.threads), torch(args.threads);
  const uint64_t t1 = clock.MonotonicNs();
  std::vector<std::thread> pool;
  for (uint32_t t = 0; t < args.threads; ++t) {
    pool.emplace_back([&, t] {
      for (uint32_t i = t; i < args.samples; i += args.threads) {
        const double begin = ThreadCpuSeconds();
        Must(runner->ForwardTokens(Sample(i, args.tokens, spec.vocab), LayerRangeRunner::Output::kNone));
        forward[t] += ThreadCpuSeconds() - begin;
        if (args.device == "cpu") torch[t] += TorchSeconds(spec, args.tokens, args.device);
      }
    });
  }
  for (std::thread& t : pool) t.join();
  const double flops = LinearFlops(spec, args.tokens) * args.samples;
  const double wall = static_cast<double>(clock.MonotonicNs() - t1) * 1e-9;
  if (args.device != "cpu") {
    const double plain = TorchSeconds(spec, args.tokens, args.device);
    std::printf("%.2f ms per sample by the clock, %.1f samples/s, %.1f TFLOP/s in the linears alone\n", 1e3 * wall / args.samples,
                args.samples / wall, flops / wall * 1e-12);
    std::printf("plain torch bf16 matmuls of the same shapes: %.2f ms, %.1f TFLOP/s; the forward runs at %.0f %% of that\n", 1e3 * plain,
                flops / args.samples / plain * 1e-12, 100 * plain * args.samples / wall);
    return 0;
  }
  double ours = 0, theirs = 0;
  for (uint32_t t = 0; t < args.threads; ++t) ours += forward[t], theirs += torch[t];
  std::printf("wall %.2f s (with the comparison)\n", wall);
  std::printf("forward: %.1f ms of CPU per sample, %.2f samples/s on %u threads, %.0f GFLOP/s per thread in the linears alone\n",
              1e3 * ours / args.samples, args.samples / ours * args.threads, args.threads, flops / ours * 1e-9);
  std::printf("plain torch bf16 matmuls of the same shapes: %.1f ms, %.0f GFLOP/s; the forward runs at %.0f %% of that\n",
              1e3 * theirs / args.samples, flops / theirs * 1e-9, 100 * theirs / ours);
  return 0;
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) {
  holdfast::Args args;
  if (argc < 2) {
    std::fprintf(stderr, "usage: bench_forward MODEL_DIR [samples] [tokens] [threads] [device]\n");
    return 2;
  }
  args.dir = argv[1];
  if (argc > 2) args.samples = static_cast<uint32_t>(std::atoi(argv[2]));
  if (argc > 3) args.tokens = static_cast<uint32_t>(std::atoi(argv[3]));
  if (argc > 4) args.threads = static_cast<uint32_t>(std::atoi(argv[4]));
  if (argc > 5) args.device = argv[5];
  return holdfast::Main(args);
}
