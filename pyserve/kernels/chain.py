"""Chains: the parts of a graph that prediction runs by one call each (`torch.ops.pyserve.run_chain`).

`chain_up` finds them in a graph that `rewrite.py` has folded and fused, and puts a `Chain` in the place of each.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as nn_module

from pyserve.kernels._extension import C
from pyserve.kernels.layers import FoldedConv2d
from pyserve.kernels.plan import Plan, Weights, make_plan
from pyserve.kernels.steps import Step, Steps, operands, step_of

_MOST_PLANS = 16  # sets of input sizes remembered per chain
_version = operator.attrgetter("_version")


class Chain:
    """A part of a graph as one call. It has no parameters of its own: its steps name the modules that do."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self._plans: dict[Any, Plan] = {}
        self._packed: dict[Any, Tensor] = {}
        self._weights: list[Any] = []  # what the plans are made with, and
        self._versions = 0  # the sum of their version counters

    def __call__(self, *inputs: Tensor) -> Any:
        """What the last of its layers gives, or a list where several values are used elsewhere.

        Raises:
            CannotPlanError: these sizes are not what its layers take.
        """
        plan = self._plan(inputs)
        run: Any = torch.ops.pyserve.run_chain
        outputs = run(inputs, plan.constants, plan.program)
        return outputs[0] if len(outputs) == 1 else outputs

    @property
    def packed_bytes(self) -> int:
        """Memory of the weights that were packed so far."""
        return sum(tensor.nbytes for tensor in list(self._packed.values()))

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made again."""
        return {**self.__dict__, "_plans": {}, "_packed": {}, "_weights": []}

    def _plan(self, inputs: tuple[Tensor, ...]) -> Plan:
        weights = [table[name] for table, name in self._slots()]
        versions = sum(map(_version, (w for w in weights if w is not None and not w.is_inference())))
        same = len(weights) == len(self._weights) and all(map(operator.is_, weights, self._weights))
        if versions != self._versions or not same:
            self._plans, self._packed, self._weights, self._versions = {}, {}, weights, versions
        key = (C.dispatch_state(), *((x.shape, x.dtype) for x in inputs))
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            by_step = [Weights(*weights[i : i + 2]) for i in range(0, len(weights), 2)]
            plan = make_plan(self.steps, by_step, inputs, self._packed)
            self._plans[key] = plan
        return plan

    def _slots(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Where the weight and the bias of each layer that has some are, in order."""
        for step in self.steps.steps:
            if isinstance(step.module, FoldedConv2d):
                yield step.module._buffers, "folded_weight"
                yield step.module._buffers, "folded_bias"
            elif step.module is not None:
                yield step.module._parameters, "weight"
                yield step.module._parameters, "bias"


# ------------------------------------------------------------ from graph to chains


def chain_up(root: nn.Module, graph: fx.Graph) -> tuple[fx.Graph, dict[str, Chain]]:
    """A copy of the graph that calls chains where it can, and these by the names it calls them.

    A chain takes the longest run of nodes that are all steps, if a layer with weights is among them.
    """
    graph = copy.deepcopy(graph)
    modules = dict(root.named_modules(remove_duplicate=False))
    _drop_aliases(graph, modules)
    chains: dict[str, Chain] = {}
    for run in _runs(graph, modules):
        if any(step.module is not None for step in run.values()):
            name = f"_chain{len(chains)}"
            chains[name] = _replace(graph, run, name)
    return graph, chains


def _drop_aliases(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    for node in list(graph.nodes):
        step = step_of(node, modules)
        if step is not None and step.kind == "alias" and isinstance(node.args[0], fx.Node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _runs(graph: fx.Graph, modules: dict[str, nn.Module]) -> list[dict[fx.Node, Step]]:
    """Nodes that follow each other and are steps."""
    runs: list[dict[fx.Node, Step]] = [{}]
    for node in graph.nodes:
        step = step_of(node, modules)
        if step is not None and step.kind != "alias":
            runs[-1][node] = step
        elif node.op not in ("placeholder", "get_attr") and runs[-1]:
            runs.append({})
    return runs


def _replace(graph: fx.Graph, run: dict[fx.Node, Step], name: str) -> Chain:
    """One call of a chain in the place of a run of nodes."""
    inputs = list(dict.fromkeys(arg for node in run for arg in operands(node) if arg not in run))
    numbers = {node: i for i, node in enumerate([*inputs, *run])}
    for node, step in run.items():
        x, *others = (numbers[arg] for arg in operands(node))
        step.x, step.y, step.residual = x, numbers[node], others[0] if others else -1
    used = [node for node in run if any(user not in run for user in node.users)]
    with graph.inserting_after(list(run)[-1]):
        call = graph.call_module(name, tuple(inputs))
    for i, node in reversed(list(enumerate(used))):
        value = call
        if len(used) > 1:
            with graph.inserting_after(call):
                value = graph.call_function(operator.getitem, (call, i))
        node.replace_all_uses_with(value, delete_user_cb=lambda user: user not in run)
    for node in reversed(run):
        graph.erase_node(node)
    return Chain(Steps(len(inputs), list(run.values()), [numbers[node] for node in used]))


# ------------------------------------------------------------ when


def can_chain(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether a call may run by chains: on plain CPU tensors, where nobody watches the single layers."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() or torch.is_autocast_enabled("cpu"):
        return False
    tracked = torch.is_grad_enabled()
    for x in inputs:
        if isinstance(x, Tensor) and (
            type(x) is not Tensor
            or not x.is_cpu
            or x.dtype not in (torch.float32, torch.bfloat16)
            or (tracked and x.requires_grad)
        ):
            return False
    if nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks:
        return False
    return not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules() if m is not model)
