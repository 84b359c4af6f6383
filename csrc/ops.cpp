// Every operator's schema. Each device registers its implementations at the end of its own launchers.
//
// lo, hi: the activation's bounds, see Clamp. tf32: float32 may be multiplied as TF32 on a GPU. Gradients that `wanted`
// does not ask for come back as empty tensors [0].
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(pyserve, m) {
  m.def(
      "conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int[2] stride, int[2] padding, int[2] dilation, "
      "int groups, float lo, float hi, bool tf32=False) -> Tensor");
  // conv2d, then max pooling in windows of size × size; pool: size, stride, padding. For prediction: it has no
  // gradient.
  m.def(
      "conv2d_pool(Tensor x, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation, int groups, "
      "int[3] pool, float lo, float hi, bool tf32=False) -> Tensor");
  // conv2d, and the mean and the biased variance of each channel of its output, for the BatchNorm that follows.
  m.def(
      "conv2d_statistics(Tensor x, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation, int "
      "groups, bool tf32=False) -> (Tensor, Tensor, Tensor)");
  // wanted: of x, weight, bias, residual.
  m.def(
      "conv2d_backward(Tensor grad, Tensor? y, Tensor x, Tensor weight, int[2] stride, int[2] padding, int[2] "
      "dilation, "
      "int groups, float lo, float hi, bool[4] wanted, bool tf32=False) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("bias_relu(Tensor x, Tensor? bias, Tensor? residual, float lo, float hi) -> Tensor");
  // The gradient of x is the residual's too; the second is the bias'.
  m.def("bias_relu_backward(Tensor grad, Tensor? y, float lo, float hi, bool bias_wanted) -> (Tensor, Tensor)");
  // Training: without mean and var; then those of this batch come back (var biased), else empty tensors. of_batch: mean
  // and var are given, and are those of this batch, of which the gradient is to know.
  m.def(
      "batch_norm_relu(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mean, Tensor? var, float eps, "
      "float lo, float hi, bool of_batch=False) -> (Tensor, Tensor, Tensor)");
  // y: wanted with a residual alone, else its mask is computed again from x. wanted: of x, weight, bias, residual.
  m.def(
      "batch_norm_relu_backward(Tensor grad, Tensor? y, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor "
      "var, bool training, float eps, float lo, float hi, bool[4] wanted) -> (Tensor, Tensor, Tensor, Tensor)");
  // The weights of a convolution of x as a variant (see pyserve._C.conv2d_choice) wants them for these sizes.
  m.def(
      "conv2d_pack(Tensor weight, int variant, int[4] x, int[2] stride, int[2] padding, int[2] dilation, int groups) "
      "-> Tensor");
  // uint8 pictures [N, 3, H, W] through table [3, 256], into channels-last memory; on the CPU alone.
  m.def("normalize_pixels(Tensor pixels, Tensor table) -> Tensor");
  // Layers in one call: see csrc/chain.h.
  m.def("run_chain(Tensor[] inputs, Tensor[] constants, Tensor program) -> Tensor[]");
}
