// pyserve._C: what was built, what was found, what was chosen. Loads no torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "checks.h"
#include "choices.h"
#include "registry.h"
#include "workspace.h"

namespace py = pybind11;
using namespace pyserve;

namespace {

TensorInfo tensor_info(const py::handle& tensor) {
  const auto [sizes, dtype, device] = tensor.cast<std::tuple<std::vector<int64_t>, std::string, std::string>>();
  return {sizes, dtype, device};
}

std::optional<TensorInfo> optional_info(const py::object& tensor) {
  return tensor.is_none() ? std::nullopt : std::optional<TensorInfo>(tensor_info(tensor));
}

py::list variants() {
  py::list rows;
  const auto& list = variant_list();
  for (size_t i = 0; i < list.size(); ++i) {
    py::dict row;
    row["name"] = list[i].name;
    row["op"] = list[i].op;
    row["algorithm"] = list[i].algorithm;
    row["needs"] = list[i].needs;
    row["device"] = list[i].is_cuda ? "cuda" : "cpu";
    row["least_capability"] = list[i].least_capability;
    row["calls"] = call_count(static_cast<int32_t>(i));
    rows.append(row);
  }
  return rows;
}

py::dict build_facts() {
  py::dict facts;
  facts["compiler"] = __VERSION__;
  facts["flags"] = PYSERVE_BUILD_FLAGS;
  facts["torch_least"] = "2.10";
  facts["cuda_architectures"] = PYSERVE_BUILD_CUDA_ARCHS;
  return facts;
}

using Sizes = std::vector<int64_t>;

Conv2dProblem conv2d_problem(const py::object& x, const py::object& weight, const py::object& bias,
                             const py::object& residual, const Sizes& stride, const Sizes& padding,
                             const Sizes& dilation, int64_t groups, double lo, double hi) {
  return check_conv2d({tensor_info(x), tensor_info(weight), optional_info(bias), optional_info(residual), stride,
                       padding, dilation, groups, lo, hi});
}

std::vector<int64_t> conv2d_sizes(const py::object& x, const py::object& weight, const py::object& bias,
                                  const py::object& residual, const Sizes& stride, const Sizes& padding,
                                  const Sizes& dilation, int64_t groups, double lo, double hi) {
  const Conv2dProblem p = conv2d_problem(x, weight, bias, residual, stride, padding, dilation, groups, lo, hi);
  return {p.N, p.K, p.P, p.Q};
}

using Pool2d = std::tuple<int64_t, int64_t, int64_t>;

MaxPool max_pool(const Pool2d& told) {
  const auto [size, stride, pad] = told;
  return {size, stride, pad};
}

bool conv2d_covers(const std::string& name, const py::object& x, const py::object& weight, const Sizes& stride,
                   const Sizes& padding, const Sizes& dilation, int64_t groups, const Pool2d& pool) {
  Conv2dProblem p =
      conv2d_problem(x, weight, py::none(), py::none(), stride, padding, dilation, groups, -INFINITY, INFINITY);
  p.pool = max_pool(pool);
  return variant_covers(name, p);
}

// What conv2d will do with a problem: the variant's index in variants() or −1, the layout of its packed weights (equal
// layouts can share them; −1: it has none).
std::tuple<int32_t, int32_t> conv2d_choice(const py::object& x, const py::object& weight, const Sizes& stride,
                                           const Sizes& padding, const Sizes& dilation, int64_t groups,
                                           const Pool2d& pool) {
  Conv2dProblem p =
      conv2d_problem(x, weight, py::none(), py::none(), stride, padding, dilation, groups, -INFINITY, INFINITY);
  p.pool = max_pool(pool);
  const auto [variant, run, why] = choose_cpu<Op::conv2d>(p);
  if (variant == Variant::count) return {-1, -1};
  note_choice(p, variant, why);
  const Packing* packing = packing_of(variant);
  return {static_cast<int32_t>(variant), packing ? packing->layout(p) : -1};
}

// The variant that an operator takes for a problem, why, and the problem's class.
std::tuple<std::string, std::string, std::string> conv2d_explain(const std::string& op, const py::object& x,
                                                                 const py::object& weight, const Sizes& stride,
                                                                 const Sizes& padding, const Sizes& dilation,
                                                                 int64_t groups) {
  const Explained found = explain(
      op, conv2d_problem(x, weight, py::none(), py::none(), stride, padding, dilation, groups, -INFINITY, INFINITY));
  return {variant_list()[static_cast<size_t>(found.variant)].name, found.why, found.problem_class};
}

std::vector<std::tuple<std::string, std::string, std::string>> choices() {
  std::vector<std::tuple<std::string, std::string, std::string>> rows;
  for (const NotedChoice& choice : noted_choices())
    rows.emplace_back(variant_list()[static_cast<size_t>(choice.variant)].name, choice.problem, choice.why);
  return rows;
}

void bias_relu_check(const py::object& x, const py::object& bias, const py::object& residual, double lo, double hi) {
  check_bias_relu(tensor_info(x), optional_info(bias), optional_info(residual), lo, hi);
}

void normalize_pixels_check(const py::object& pixels, const py::object& table) {
  check_normalize_pixels(tensor_info(pixels), tensor_info(table));
}

void batch_norm_relu_check(const py::object& x, const py::object& weight, const py::object& bias,
                           const py::object& residual, const py::object& mean, const py::object& var, double eps,
                           double lo, double hi) {
  check_batch_norm_relu({tensor_info(x), optional_info(weight), optional_info(bias), optional_info(residual),
                         optional_info(mean), optional_info(var), eps, lo, hi});
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts, the ISA found and in use, the kernel variants, the counters.";
  py::register_exception<InvalidArgument>(m, "InvalidArgument", PyExc_ValueError);
  m.def("build_facts", &build_facts);
  m.def("variants", &variants, "Every kernel variant with its calls so far, best first within an operator.");
  m.def("isa_found", [] { return isa_name(isa_found()); });
  m.def("isa_in_use", [] { return isa_name(isa_in_use()); });
  m.def(
      "isa_names",
      [] {
        std::vector<std::string> names;
        for (int i = 0; i <= static_cast<int>(isa_found()); ++i) names.push_back(isa_name(static_cast<Isa>(i)));
        return names;
      },
      "What this machine can run, plainest first.");
  m.def("set_isa", &set_isa, py::arg("name"), "Caps the ISA of the kernels in this process.");
  m.def("prefer_variant", &prefer_variant, py::arg("name"),
        "Takes this variant wherever it covers the problem; an empty name undoes it.");
  m.def("prefer_tile", &prefer_tile, py::arg("name"),
        "Takes this tile in the tensor core kernels: large, medium, small or narrow; an empty name undoes it.");
  m.def(
      "dispatch_state",
      [] { return std::make_tuple(isa_name(isa_in_use()), preferred_variant(), choices_generation()); },
      "What choices depend on beside the problem: the ISA, the preferred variant, the generation of the loaded table.");
  m.def("load_choices", &load_choices, py::arg("rows"),
        "Takes these rows ahead of the committed table (csrc/choices.h); none undoes it.");
  m.def("choices", &choices, "(variant, problem, why) of each class of problems so far.");
  m.def("conv2d_explain", &conv2d_explain, py::arg("op"), py::arg("x"), py::arg("weight"), py::arg("stride"),
        py::arg("padding"), py::arg("dilation"), py::arg("groups"),
        "(variant, why, the problem's class as a row of the table has it) of conv2d, conv2d_dgrad or conv2d_wgrad.");
  m.def("conv2d_covers", &conv2d_covers, py::arg("name"), py::arg("x"), py::arg("weight"), py::arg("stride"),
        py::arg("padding"), py::arg("dilation"), py::arg("groups"), py::arg("pool") = Pool2d{},
        "Whether the variant takes conv2d or its gradients of this problem, with this max pooling (size, stride, "
        "padding; size 0: none).");
  m.def("conv2d_choice", &conv2d_choice, py::arg("x"), py::arg("weight"), py::arg("stride"), py::arg("padding"),
        py::arg("dilation"), py::arg("groups"), py::arg("pool"),
        "The variant that conv2d, with this max pooling (size, stride, padding; size 0: none), takes on the CPU, as an "
        "index into variants() or -1, and the layout of its packed weights: equal layouts can share them; -1 where it "
        "has none.");
  m.def("fallbacks", &fallback_counts);
  m.def("chain_calls", &chain_count, "Calls of run_chain.");
  m.def("reset_counters", &reset_counters);
  m.def(
      "workspace",
      [] {
        const WorkspaceUsage usage = workspace_usage();
        return std::make_tuple(usage.held_bytes, usage.borrowed_bytes, usage.most_held_bytes, usage.given_back_bytes);
      },
      "Bytes of scratch memory: held, of these lent to running calls, most ever held, given back.");
  m.def("release_workspace", &release_workspace, "Gives the scratch memory that nobody uses back to the system.");
  m.def("poison_workspace", &poison_workspace, py::arg("wanted"), "For tests: lent memory starts as NaN.");
  m.def("take_new_choices", &take_new_choices, "The choices made for the first time since the last call.");
  // A tensor is told as (sizes, dtype, device).
  m.def("check_conv2d", &conv2d_sizes, "Sizes of conv2d's output; raises InvalidArgument with the sentence.");
  m.def("count_fallback", &count_fallback, py::arg("op"), py::arg("reason"), "Counts what was left to ATen.");
  m.def("check_batch_norm_relu", &batch_norm_relu_check, "Raises InvalidArgument with the sentence.");
  m.def("check_bias_relu", &bias_relu_check, "Raises InvalidArgument with the sentence.");
  m.def("check_normalize_pixels", &normalize_pixels_check, "Raises InvalidArgument with the sentence.");
}
