// 2-D convolutions of oneDNN as a target of XLA's foreign function interface: see convolution.py,
// which calls it, and onednn.py, which compiles this file.
//
// Activations are NHWC, as XLA has them. Kernels are HWIO and are reordered into the layout that
// oneDNN wants, which costs little because they are small.

#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

extern "C" {  // of the OpenMP library that oneDNN uses
int omp_get_max_threads();
void omp_set_num_threads(int);
}

namespace {

namespace ffi = xla::ffi;
using dnnl::memory;
using Dims = memory::dims;
using Arguments = std::unordered_map<int, memory>;

// The array that is computed from the other two; as in convolution.py.
enum Wanted : int64_t { kInput = 0, kKernel = 1, kOutput = 2 };

const dnnl::engine& Cpu() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

struct Problem {
  int64_t wanted;
  memory::data_type type;
  int64_t groups;
  Dims input, kernel, output, strides, dilation, low, high;  // logical: NCHW, (G)OIHW

  std::vector<int64_t> Key(int64_t threads) const {
    std::vector<int64_t> key = {wanted, static_cast<int64_t>(type), groups, threads};
    for (const Dims* dims : {&input, &kernel, &output, &strides, &dilation, &low, &high})
      key.insert(key.end(), dims->begin(), dims->end());
    return key;
  }
};

// The caller brings the memory that a primitive works in, so that any thread may run it.
dnnl::primitive_attr UserScratchpad() {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attributes;
}

// An operand in XLA's layout and in the one that the primitive wants.
struct Operand {
  int argument = 0;
  memory::desc ours, theirs, scratchpad;  // scratchpad: of the reorder
  dnnl::reorder reorder;

  bool IsReordered() const { return ours != theirs; }
};

struct Plan {
  dnnl::primitive primitive;
  memory::desc scratchpad;
  Operand first, second, result;
};

Operand MakeOperand(int argument, memory::desc ours, memory::desc theirs, bool is_result) {
  Operand operand{argument, ours, theirs, {}, {}};
  if (operand.IsReordered()) {
    const auto& [from, to] = is_result ? std::pair(theirs, ours) : std::pair(ours, theirs);
    const dnnl::reorder::primitive_desc desc(Cpu(), from, Cpu(), to, UserScratchpad());
    operand.scratchpad = desc.scratchpad_desc();
    operand.reorder = dnnl::reorder(desc);
  }
  return operand;
}

Plan MakePlan(const Problem& p) {
  using tag = memory::format_tag;
  const memory::desc input(p.input, p.type, tag::nhwc), output(p.output, p.type, tag::nhwc);
  const memory::desc kernel(p.kernel, p.type, p.groups > 1 ? tag::hwigo : tag::hwio);
  const memory::desc any(p.kernel, p.type, tag::any);
  const auto algorithm = dnnl::algorithm::convolution_direct;
  const dnnl::primitive_attr attributes = UserScratchpad();
  const dnnl::convolution_forward::primitive_desc forward(
      Cpu(), dnnl::prop_kind::forward_training, algorithm, input, any, output, p.strides,
      p.dilation, p.low, p.high, attributes);
  if (p.wanted == kOutput) {
    return {dnnl::convolution_forward(forward), forward.scratchpad_desc(),
            MakeOperand(DNNL_ARG_SRC, input, forward.src_desc(), false),
            MakeOperand(DNNL_ARG_WEIGHTS, kernel, forward.weights_desc(), false),
            MakeOperand(DNNL_ARG_DST, output, forward.dst_desc(), true)};
  }
  if (p.wanted == kInput) {
    const dnnl::convolution_backward_data::primitive_desc backward(
        Cpu(), algorithm, input, any, output, p.strides, p.dilation, p.low, p.high, forward,
        attributes);
    return {dnnl::convolution_backward_data(backward), backward.scratchpad_desc(),
            MakeOperand(DNNL_ARG_WEIGHTS, kernel, backward.weights_desc(), false),
            MakeOperand(DNNL_ARG_DIFF_DST, output, backward.diff_dst_desc(), false),
            MakeOperand(DNNL_ARG_DIFF_SRC, input, backward.diff_src_desc(), true)};
  }
  const dnnl::convolution_backward_weights::primitive_desc backward(
      Cpu(), algorithm, input, any, output, p.strides, p.dilation, p.low, p.high, forward,
      attributes);
  return {dnnl::convolution_backward_weights(backward), backward.scratchpad_desc(),
          MakeOperand(DNNL_ARG_SRC, input, backward.src_desc(), false),
          MakeOperand(DNNL_ARG_DIFF_DST, output, backward.diff_dst_desc(), false),
          MakeOperand(DNNL_ARG_DIFF_WEIGHTS, kernel, backward.diff_weights_desc(), true)};
}

// Making a plan compiles code, so each is kept; primitives may run in several threads at once.
const Plan& PlanOf(const Problem& problem, int64_t threads) {
  static std::mutex mutex;
  static auto& plans = *new std::map<std::vector<int64_t>, std::unique_ptr<Plan>>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Plan>& plan = plans[problem.Key(threads)];
  if (plan == nullptr) plan = std::make_unique<Plan>(MakePlan(problem));
  return *plan;
}

// Memory of this thread, kept between calls: the system would clear new pages at every call.
class Workspace {
 public:
  explicit Workspace(size_t bytes) {
    static thread_local std::unique_ptr<void, decltype(&std::free)> kept(nullptr, &std::free);
    static thread_local size_t size = 0;
    if (bytes > size) {
      kept.reset();
      size = (bytes + kAlignment - 1) / kAlignment * kAlignment;
      kept.reset(std::aligned_alloc(kAlignment, size));
      if (kept == nullptr) {
        size = 0;
        throw std::bad_alloc();
      }
    }
    next_ = static_cast<char*>(kept.get());
  }

  static size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

  memory Take(const memory::desc& desc) {
    memory taken(desc, Cpu(), next_);
    next_ += Aligned(desc.get_size());
    return taken;
  }

 private:
  static constexpr size_t kAlignment = 64;
  char* next_;
};

void Run(const Plan& plan, void* first, void* second, void* result) {
  static thread_local dnnl::stream stream(Cpu());
  size_t bytes = Workspace::Aligned(plan.scratchpad.get_size());
  for (const Operand* operand : {&plan.first, &plan.second, &plan.result})
    if (operand->IsReordered())
      bytes += Workspace::Aligned(operand->theirs.get_size()) +
               Workspace::Aligned(operand->scratchpad.get_size());
  Workspace workspace(bytes);
  const auto reorder = [&](const Operand& operand, memory& from, memory& to) {
    const memory scratchpad = workspace.Take(operand.scratchpad);
    operand.reorder.execute(stream, {{DNNL_ARG_FROM, from},
                                     {DNNL_ARG_TO, to},
                                     {DNNL_ARG_SCRATCHPAD, scratchpad}});
  };

  Arguments arguments = {{DNNL_ARG_SCRATCHPAD, workspace.Take(plan.scratchpad)}};
  for (const auto& [operand, data] : {std::pair(&plan.first, first), {&plan.second, second}}) {
    memory ours(operand->ours, Cpu(), data);
    if (operand->IsReordered()) {
      memory theirs = workspace.Take(operand->theirs);
      reorder(*operand, ours, theirs);
      ours = theirs;
    }
    arguments.emplace(operand->argument, ours);
  }
  memory ours(plan.result.ours, Cpu(), result);
  memory theirs = plan.result.IsReordered() ? workspace.Take(plan.result.theirs) : ours;
  arguments.emplace(plan.result.argument, theirs);
  plan.primitive.execute(stream, arguments);
  if (plan.result.IsReordered()) reorder(plan.result, theirs, ours);
  stream.wait();
}

// Sets the threads of OpenMP in this thread, which others may use too, for as long as it lives.
class Threads {
 public:
  explicit Threads(int64_t count) : before_(omp_get_max_threads()) {
    omp_set_num_threads(static_cast<int>(count));
  }
  ~Threads() { omp_set_num_threads(before_); }

 private:
  const int before_;
};

Dims Nchw(ffi::AnyBuffer::Dimensions nhwc) { return {nhwc[0], nhwc[3], nhwc[1], nhwc[2]}; }

// Computes the wanted array from the other two: input, kernel and output in this order.
ffi::Error Convolve(ffi::AnyBuffer first, ffi::AnyBuffer second, ffi::Result<ffi::AnyBuffer> result,
                    int64_t wanted, ffi::Span<const int64_t> strides,
                    ffi::Span<const int64_t> dilation, ffi::Span<const int64_t> padding,
                    int64_t groups, int64_t threads) {
  try {
    const ffi::AnyBuffer& input = wanted == kInput ? *result : first;
    const ffi::AnyBuffer& kernel =
        wanted == kInput ? first : wanted == kKernel ? *result : second;
    const ffi::AnyBuffer& output = wanted == kOutput ? *result : second;
    const auto hwio = kernel.dimensions();
    Problem problem;
    problem.wanted = wanted;
    problem.type = first.element_type() == ffi::F32 ? memory::data_type::f32
                                                    : memory::data_type::bf16;
    problem.groups = groups;
    problem.input = Nchw(input.dimensions());
    problem.output = Nchw(output.dimensions());
    problem.kernel = groups > 1 ? Dims{groups, hwio[3] / groups, hwio[2], hwio[0], hwio[1]}
                                : Dims{hwio[3], hwio[2], hwio[0], hwio[1]};
    problem.strides = Dims(strides.begin(), strides.end());
    problem.dilation = {dilation[0] - 1, dilation[1] - 1};  // oneDNN counts the gaps
    problem.low = {padding[0], padding[2]};
    problem.high = {padding[1], padding[3]};
    const Threads scope(threads);
    Run(PlanOf(problem, threads), first.untyped_data(), second.untyped_data(),
        result->untyped_data());
    return ffi::Error::Success();
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, std::string("oneDNN: ") + error.what());
  }
}

}  // namespace

// Whether this processor has the instructions that oneDNN needs for bfloat16.
extern "C" bool byol_jax_has_bfloat16() {
  try {
    for (int64_t wanted : {kInput, kKernel, kOutput})
      MakePlan({wanted, memory::data_type::bf16, 1, {1, 8, 4, 4}, {8, 8, 3, 3}, {1, 8, 4, 4},
                {1, 1}, {0, 0}, {1, 1}, {1, 1}});
    return true;
  } catch (const dnnl::error&) {
    return false;
  }
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(byol_jax_convolution, Convolve,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("wanted")
                                  .Attr<ffi::Span<const int64_t>>("strides")
                                  .Attr<ffi::Span<const int64_t>>("dilation")
                                  .Attr<ffi::Span<const int64_t>>("padding")
                                  .Attr<int64_t>("groups")
                                  .Attr<int64_t>("threads"));
