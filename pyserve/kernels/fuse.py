"""Turn a torchvision-like model into one on our operators.

`torch.fx` traces the model; the graph is rewritten (`rewrite.py`) and becomes the `forward` of a
`FusedModel`, which has the modules, parameters, names and state-dict keys of the model it came from.
"""

from __future__ import annotations

import copy
import operator
import types
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from pyserve.errors import InvalidArgumentError
from pyserve.kernels.chain import Chain, can_chain, chain_up
from pyserve.kernels.layers import AddReLU, BatchNorm2d, Conv2d, FoldedConv2d
from pyserve.kernels.plan import CannotPlanError
from pyserve.kernels.rewrite import AUGMENTED, Rewriter


def fuse(model: nn.Module, *, inference: bool) -> FusedModel:
    """The model on our operators, with the same outputs and state-dict keys.

    Training form (`inference=False`): every `nn.Conv2d` and `nn.BatchNorm2d` runs on our operators; ReLU and
    ReLU6, with the residual addition before them if there is one, become part of the BatchNorm or convolution
    before, or one pass of their own; on tensor cores a convolution gives the BatchNorm after it the statistics.
    Parameters and buffers are the model's own objects: an optimiser made for one trains the other, and moving one
    to another device or dtype spoils the other (move first, or go on with the fused one only).

    Inference form: BatchNorms that follow a convolution are folded into it, and residual addition and activation
    happen in the convolution's epilogue; a first layer does the max pooling after it, too. On the CPU, layers that
    nobody watches (hooks, autograd, autocast, compile) run in chains, one call each, planned once per set of input
    sizes. It is a copy of its own, in eval mode for good, its parameters want no gradient. `load_state_dict` takes
    the plain model's state dict (weights are folded again) and `state_dict` gives one that the plain model takes:
    conv and BatchNorm are kept beside their product.

    Both convert 4-D inputs to channels-last. Modules that hold nothing to fuse are taken over as they are, as are
    convolutions with hooks, of subclasses, or parametrized. Of the model's methods only `forward` is taken over.

    Raises:
        InvalidArgumentError: torch.fx cannot trace the model, or training is asked of an inference form.
    """
    if isinstance(model, FusedModel) and model.inference:
        if not inference:
            raise InvalidArgumentError("fuse: the inference form cannot be trained; fuse the plain model instead")
        return copy.deepcopy(model)
    tensors = [] if inference else [*model.parameters(), *model.buffers()]
    root = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    if inference:
        root.eval().requires_grad_(False)
        for parameter in root.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    graphs = _trace(root, modes=(False,) if inference else (True, False))
    folds: list[tuple[str, str]] = []
    for training, graph in graphs.items():
        rewriter = Rewriter(root, graph)
        if inference:
            folds = rewriter.fold_batch_norms()
        rewriter.fuse_epilogues()
        if training:
            rewriter.join_norms()
    if not inference:
        return FusedModel(root, graphs, folds, None)
    chained = chain_up(root, graphs[False])  # before poolings are joined: a chain finds its own
    rewriter.join_pools()
    return FusedModel(root, graphs, folds, chained)


class FusedModel(nn.Module):
    """What `fuse` makes: a model's modules, run by a rewritten graph; copies, pickles, compiles like any module.

    Attributes:
        inference: which form it is.
    """

    inference: bool

    def __init__(
        self,
        root: nn.Module,
        graphs: dict[bool, fx.Graph],
        folds: list[tuple[str, str]],
        chained: tuple[fx.Graph, dict[str, Chain]] | None,
    ) -> None:
        super().__init__()
        self.__dict__.update(root.__dict__)  # children, parameters, buffers, hooks, attributes, under their names
        self.inference = chained is not None
        self._folds = folds
        self._programs = {mode: _program(graph) for mode, graph in graphs.items()}
        self._chained_program: _Program | None = None
        if chained is not None and chained[1]:
            self._chained_program = _program(chained[0])
            self.__dict__.update(chained[1])  # not among the modules: they have no parameters of their own
        self._compile_programs()
        if folds:
            self.register_load_state_dict_post_hook(_fold_again)  # type: ignore[no-untyped-call]

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the model's `forward` takes and gives."""
        if self._run_chained is not None and can_chain(self, inputs):
            try:
                return self._run_chained(self, *inputs, **options)
            except CannotPlanError:
                pass
        run = self._run_training if self.training else self._run_evaluation
        return run(self, *[_channels_last(value) for value in inputs], **options)

    def train(self, mode: bool = True) -> FusedModel:
        """As of any module; the inference form stays in eval mode."""
        super().train(mode and not self.inference)
        return self

    def fold_again(self) -> None:
        """Fold anew from the present parameters; `load_state_dict` does it by itself."""
        for conv_name, norm_name in self._folds:
            conv, norm = self.get_submodule(conv_name), self.get_submodule(norm_name)
            cast("FoldedConv2d", conv).fold(cast("nn.BatchNorm2d", norm))

    @property
    def packed_bytes(self) -> int:
        """Memory of weights packed for the kernels so far, beside parameters and buffers."""
        return sum(value.packed_bytes for value in vars(self).values() if isinstance(value, Chain))

    @property
    def code(self) -> str:
        """The Python source of the fused forward (in the present mode), to read."""
        return self._programs[self.training if self.training in self._programs else False][0]

    def __getstate__(self) -> dict[str, Any]:
        """Without the compiled functions."""
        return {k: v for k, v in self.__dict__.items() if k not in _COMPILED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._compile_programs()

    def _compile_programs(self) -> None:
        self._run_chained = _function(*self._chained_program) if self._chained_program else None
        self._run_evaluation = _function(*self._programs[False])
        same = self._programs.get(True, self._programs[False]) == self._programs[False]
        self._run_training = self._run_evaluation if same else _function(*self._programs[True])


def _channels_last(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dim() == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value


def _fold_again(module: nn.Module, incompatible_keys: Any) -> None:
    """After `load_state_dict`."""
    cast("FusedModel", module).fold_again()


# ------------------------------------------------------------ from model to graph to program

_Program = tuple[str, dict[str, Any]]  # source of forward, and the global names it uses
_COMPILED = ("_run_training", "_run_evaluation", "_run_chained")  # made anew from their source


def _program(graph: fx.Graph) -> _Program:
    graph.lint()
    code = graph.python_code("self")
    return code.src, {name: _ModuleName.of(value) for name, value in code.globals.items()}


def _function(source: str, names: dict[str, Any]) -> Callable[..., Any]:
    namespace = {k: v.load() if isinstance(v, _ModuleName) else v for k, v in names.items()}
    exec(compile(source, "<fused forward>", "exec"), namespace)  # noqa: S102  # our own source, from the graph
    return cast("Callable[..., Any]", namespace["forward"])


class _ModuleName(str):
    """A Python module by its name, for modules cannot be pickled."""

    __slots__ = ()

    @staticmethod
    def of(value: Any) -> Any:
        return _ModuleName(value.__name__) if isinstance(value, types.ModuleType) else value

    def load(self) -> types.ModuleType:
        import importlib

        return importlib.import_module(self)


class _Tracer(fx.Tracer):
    """Looks into the modules that hold something to fuse, or a chain's last layers, and takes all others as they
    are."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        ours = isinstance(module, Conv2d | BatchNorm2d | AddReLU)
        known = _holds_fusable(module) or type(module) is nn.Sequential
        return ours or super().is_leaf_module(module, qualified_name) or not known

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A stand-in that remembers `x += y` as such; torch.fx's own makes `x = x + y` of it, and an alias of x
        would keep the old numbers."""
        return _Proxy(node, self)


class _Proxy(fx.Proxy):
    """See `_Tracer.proxy`."""


def _remember(name: str) -> None:
    function = getattr(operator, f"i{name}")

    def in_place(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    setattr(_Proxy, f"__i{name}__", in_place)


for _name in AUGMENTED:
    _remember(_name)


def _holds_fusable(module: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.ReLU | nn.ReLU6 | AddReLU) for m in module.modules())


def _trace(root: nn.Module, modes: tuple[bool, ...]) -> dict[bool, fx.Graph]:
    """The graph of each mode (training, evaluation): models may do different things in them."""
    before = {module: module.training for module in root.modules()}
    graphs = {}
    name = type(root).__name__
    for mode in modes:
        if isinstance(root, FusedModel):  # to be traced with the signature that its model had
            run: Any = root._run_training if mode else root._run_evaluation
            root.__class__ = type(name, (FusedModel,), {"forward": run})
        root.train(mode)
        try:
            graphs[mode] = _Tracer().trace(root)
        except Exception as error:  # whatever a model's forward does with tracing's stand-ins
            raise InvalidArgumentError(
                f"fuse: torch.fx cannot trace {name}: {error}; its forward must not branch on what it computes"
            ) from error
    for module, mode in before.items():
        module.training = mode
    for graph in graphs.values():
        _own_constants(root, graph)
    return graphs


def _own_constants(root: nn.Module, graph: fx.Graph) -> None:
    """Tensors that the forward makes from numbers move with the model, and stay out of its state dict."""
    for node in graph.nodes:
        value = getattr(root, node.target, None) if node.op == "get_attr" and "." not in node.target else None
        if isinstance(value, Tensor) and node.target in root.__dict__:
            delattr(root, node.target)
            root.register_buffer(node.target, value, persistent=False)
