"""The rewriting that `fuse` does to the graph of a model (`torch.fx`): folding, epilogues, fused ReLU."""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from pyserve.kernels.calls import Activation
from pyserve.kernels.layers import AddReLU, BatchNorm2d, Conv2d, FoldedConv2d, conv_norm, conv_pool
from pyserve.kernels.steps import step_of

_FUNCTIONS: dict[Any, tuple[Activation, bool]] = {  # the activation, and whether it works in place
    F.relu: ("relu", False),
    torch.relu: ("relu", False),
    F.relu6: ("relu6", False),
    F.relu_: ("relu", True),
    torch.relu_: ("relu", True),
}
_METHODS: dict[str, tuple[Activation, bool]] = {"relu": ("relu", False), "relu_": ("relu", True)}
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_ADDITIONS_IN_PLACE = (operator.iadd, "add_")
AUGMENTED = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
    "matmul",
)
_WORK_IN_PLACE = {operator.setitem, *(getattr(operator, f"i{name}") for name in AUGMENTED)}


class Rewriter:
    """Rewrites one graph. `root` holds the modules; its plain convolutions become ours at once."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.root, self.graph = root, graph
        self.modules = dict(root.named_modules(remove_duplicate=False))
        for module in root.modules():
            if type(module) is nn.Conv2d and not _hooked(module):
                Conv2d.adopt(module)

    # -------------------------------------------------------- BatchNorm

    def fold_batch_norms(self) -> list[tuple[str, str]]:
        """Fold each BatchNorm into the convolution before it; names of both."""
        calls: dict[nn.Module, int] = {}
        for node in self.graph.nodes:
            if node.op == "call_module":
                calls[self.modules[node.target]] = calls.get(self.modules[node.target], 0) + 1
        folds = []
        for node in list(self.graph.nodes):
            norm, conv_node = self._module(node), node.args[0] if node.args else None
            if type(norm) not in (nn.BatchNorm2d, BatchNorm2d) or _hooked(norm):
                continue
            if not isinstance(conv_node, fx.Node) or not self._is_bare(conv_node, Conv2d):
                continue
            conv = self.modules[str(conv_node.target)]
            if type(conv) is not Conv2d or calls[conv] > 1 or calls[cast("nn.Module", norm)] > 1:
                continue  # one that is shared cannot be folded into one place
            if cast("nn.BatchNorm2d", norm).running_mean is None or not self._can_move(conv_node, node):
                continue
            FoldedConv2d.adopt_with(conv, cast("nn.BatchNorm2d", norm))
            folds.append((str(conv_node.target), str(node.target)))
            with self.graph.inserting_before(node):  # with what the BatchNorm adds and activates, if it is ours
                args = (conv_node.args[0], *node.args[1:])
                folded = self.graph.call_module(str(conv_node.target), args, node.kwargs)
            self._replace(node, folded)
            self.graph.erase_node(conv_node)
        return folds

    # -------------------------------------------------------- activations and additions

    def fuse_epilogues(self) -> None:
        """Activations with what comes before them, then the additions that no activation follows.

        BatchNorms that are left become ours: like a convolution, they add and activate on the way.
        """
        for module in self.root.modules():
            if type(module) is nn.BatchNorm2d and not _hooked(module):
                BatchNorm2d.adopt(module)
        for node in list(self.graph.nodes):
            activation, in_place = self._activation(node)
            if activation is not None and (not in_place or self._is_owned(node.args[0])):
                self._fuse_activation(node, activation)
        for node in list(self.graph.nodes):
            terms = self._terms(node)
            host = self._host(terms, node)
            if host is not None and terms is not None:
                self._into_host(host, terms, node, "none")
                self.graph.erase_node(host)

    def join_norms(self) -> None:
        """Each BatchNorm with the convolution before it, which may give it the statistics. For training."""
        for node in list(self.graph.nodes):
            conv, norm = node.args[0] if node.args else None, self._module(node)
            if type(norm) is not BatchNorm2d or not isinstance(conv, fx.Node) or not self._is_bare(conv, Conv2d):
                continue
            if type(self._module(conv)) is not Conv2d or not self._can_move(conv, node):
                continue
            if conv in node.args[1:]:  # which adds what it normalises
                continue
            with self.graph.inserting_before(node):
                modules = [self.graph.get_attr(str(n.target)) for n in (conv, node)]
                args = (*modules, conv.args[0], *node.args[1:])
                joined = self.graph.call_function(conv_norm, args, dict(node.kwargs))
            self._replace(node, joined)
            self.graph.erase_node(conv)

    def join_pools(self) -> None:
        """Each max pooling with the convolution before it, which may do both. For inference."""
        for node in list(self.graph.nodes):
            pool, conv = step_of(node, self.modules), node.args[0] if node.args else None
            if pool is None or pool.window is None or not isinstance(conv, fx.Node):
                continue
            step = step_of(conv, self.modules)
            alone = len(conv.args) == len(conv.users) == 1 and self._can_move(conv, node)  # without a residual
            if step is None or step.kind != "conv2d" or not alone:
                continue
            with self.graph.inserting_before(node):
                modules = [self.graph.get_attr(str(n.target)) for n in (conv, node)]
                args = (*modules, conv.args[0], pool.window)
                joined = self.graph.call_function(conv_pool, args, dict(conv.kwargs))
            self._replace(node, joined)
            self.graph.erase_node(conv)

    def _fuse_activation(self, node: fx.Node, activation: Activation) -> None:
        terms = tuple(term for term in node.args if isinstance(term, fx.Node))  # two of AddReLU with a residual
        addition = terms[0] if len(terms) == 1 and len(terms[0].users) == 1 and self._terms(terms[0]) else None
        if addition is not None:
            terms = self._terms(addition) or ()
        host = self._host(terms, node)
        if host is not None:
            self._into_host(host, terms, node, activation)
        else:
            with self.graph.inserting_before(node):
                self._replace(node, self.graph.call_module(self._relu(activation), terms))
        if addition is not None:
            self.graph.erase_node(addition)
        if host is not None:
            self.graph.erase_node(host)

    def _terms(self, node: fx.Node) -> tuple[fx.Node, ...] | None:
        """The two tensors that a node adds; None where it does not, or where somebody else would see it happen."""
        if not _is_addition(node) or node.kwargs or len(node.args) != 2:
            return None
        x, y = node.args
        if not isinstance(x, fx.Node) or not isinstance(y, fx.Node) or x is y:
            return None
        if node.target in _ADDITIONS_IN_PLACE and not self._is_owned(x):
            return None
        return x, y

    def _host(self, terms: tuple[fx.Node, ...] | None, node: fx.Node) -> fx.Node | None:
        """The convolution or BatchNorm among the terms that can do the rest, at the place of `node`."""
        for term in sorted(terms or (), reverse=True):
            if self._is_bare(term, Conv2d, BatchNorm2d) and self._can_move(term, node):
                return term
        return None

    def _into_host(self, host: fx.Node, terms: tuple[fx.Node, ...], node: fx.Node, activation: Activation) -> None:
        options: dict[str, Any] = {} if activation == "none" else {"activation": activation}
        others = [term for term in terms if term is not host]
        with self.graph.inserting_before(node):
            call = self.graph.call_module(str(host.target), (host.args[0], *others), options)
        self._replace(node, call)

    def _replace(self, node: fx.Node, by: fx.Node) -> None:
        node.replace_all_uses_with(by)
        self.graph.erase_node(node)

    def _relu(self, activation: Activation) -> str:
        """The name of the root's stateless AddReLU, which all places share."""
        name = f"fused_{activation}"
        while name in self.modules and not isinstance(self.modules[name], AddReLU):
            name += "_"
        if name not in self.modules:
            self.modules[name] = AddReLU(activation)
            self.root.add_module(name, self.modules[name])
        return name

    # -------------------------------------------------------- what a node is

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def _activation(self, node: fx.Node) -> tuple[Activation | None, bool]:
        """Which activation a node is, and whether it works in place."""
        module = self._module(node)
        if isinstance(module, AddReLU) and not node.kwargs:
            return module.activation, False
        if type(module) in (nn.ReLU, nn.ReLU6) and not _hooked(module):
            return ("relu" if type(module) is nn.ReLU else "relu6"), bool(module.inplace)  # type: ignore[union-attr]
        table: dict[Any, tuple[Activation, bool]] = {"call_function": _FUNCTIONS, "call_method": _METHODS}.get(
            node.op, {}
        )
        found = table.get(node.target)
        if found is None or not node.args or not isinstance(node.args[0], fx.Node):
            return None, False
        return found[0], found[1] or _works_in_place(node, None)

    def _is_bare(self, node: fx.Node, *kinds: type[nn.Module]) -> bool:
        """One of our layers whose epilogue is free and whose output has one user."""
        bare = isinstance(self._module(node), kinds) and len(node.args) == 1 and not node.kwargs
        return bare and len(node.users) == 1

    def _is_owned(self, node: Any) -> bool:
        """Whether a node's output is a fresh tensor of one user, so that nobody sees it change."""
        if not isinstance(node, fx.Node) or len(node.users) != 1:
            return False
        if node.target in _ADDITIONS_IN_PLACE:
            return self._is_owned(node.args[0])
        fresh = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, AddReLU)
        return isinstance(self._module(node), fresh) or _is_addition(node)

    def _can_move(self, node: fx.Node, to: fx.Node) -> bool:
        """Whether nothing between works in place, which a node that moves later could see."""
        between = node.next
        while between is not to:
            terms = self._terms(between)
            if terms is None and _works_in_place(between, self._module(between)):
                return False
            between = between.next
        return True


def _is_addition(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and node.target in _ADDITIONS


def _hooked(module: nn.Module | None) -> bool:
    return module is not None and bool(module._forward_hooks or module._forward_pre_hooks)


def _works_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node may change its input; errs on the side of yes."""
    if node.op == "call_module":
        return bool(getattr(module, "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    named = name.endswith("_") and not name.endswith("__")
    asked = any(value is True for value in [*node.args[1:], node.kwargs.get("inplace")])
    return named or asked or node.target in _WORK_IN_PLACE
