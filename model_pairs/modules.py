"""The modules of a model that own weights: what each is called, where it sits, what it reads and writes, and what it is
on one side of a pair.

Names are those of the bare model (`model.layers.3.mlp.down_proj`), whatever peft has put around it, so the two sides of
a pair can be matched. Torch is imported when it is needed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.model_pairs.switching import activate

if TYPE_CHECKING:
    import torch

    from diffing_mcp.model_pairs.interventions import Intervention
    from diffing_mcp.model_pairs.resident import ResidentModel

Part = Literal["attention", "mlp", "norm", "embedding", "unembedding", "residual", "other"]
"""`residual` is a steering vector: it belongs to no module."""

_WRITERS = frozenset("o_proj out_proj c_proj dense wo down_proj dense_4h_to_h fc2 fc_out w2".split())
_READERS = frozenset(
    (
        "q_proj k_proj v_proj qkv_proj query_key_value c_attn query key value wq wk wv gate_proj up_proj gate_up_proj "
        "c_fc dense_h_to_4h fc1 fc_in w1 w3"
    ).split()
)
"""Projections whose input and output are both as wide as the residual stream can be told apart by name only."""
_AFTER_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm")
_AFTER_ATTENTION = ("post_self_attn_layernorm", "post_attention_layernorm")
"""Norms of what an MLP and an attention give, before it is added. Where there is none of the former, the latter name
is that of the norm before the MLP (Llama)."""


@dataclass(frozen=True)
class ModulePlace:
    """Where a module sits.

    Attributes:
        name: in the bare model, `model.layers.3.mlp.down_proj`.
        layer: absolute layer; None outside of the blocks.
        path: name within the block, `mlp.down_proj`; outside of the blocks the whole name.
        part: kind.
    """

    name: str
    layer: int | None
    path: str
    part: Part

    @property
    def projection(self) -> str:
        """Last piece of the name: `down_proj`."""
        return self.path.rsplit(".", 1)[-1]

    def named(self, name: str) -> bool:
        """Whether `name` means this module: `all`, its part (`mlp`), its projection (`down_proj`) or its path."""
        return name in ("all", self.part, self.projection, self.path) or self.path.startswith(f"{name}.")

    def writes(self, out: int, into: int, d_model: int) -> bool:
        """Whether a matrix [out, into] here writes to the residual stream: its output is added to it (or is it, for the
        input embedding).
        """
        if self.part == "embedding":
            return out == d_model
        known = self.projection in _WRITERS
        return (
            self.part in ("attention", "mlp", "other")
            and out == d_model
            and (known or (into != d_model and self.projection not in _READERS))
        )

    def reads(self, out: int, into: int, d_model: int) -> bool:
        """Whether a matrix [out, into] here reads the (normed) residual stream."""
        if self.part == "unembedding":
            return into == d_model
        known = self.projection in _READERS
        return (
            self.part in ("attention", "mlp", "other")
            and into == d_model
            and (known or (out != d_model and self.projection not in _WRITERS))
        )


def steering_place(vector: Intervention) -> ModulePlace:
    """Where a side's steering vector counts as sitting."""
    return ModulePlace("steering vector", vector.layer, "steering", "residual")


@dataclass(frozen=True)
class LowRank:
    """A matrix [out, in] as `left @ right`: left [out, r] (scaling included), right [r, in], both float64
    on the CPU.
    """

    left: torch.Tensor
    right: torch.Tensor

    def dense(self) -> torch.Tensor:
        """[out, in] float32."""
        return (self.left @ self.right).float()


@dataclass(frozen=True)
class Unit:
    """One module as it is on one side.

    Attributes:
        outer: the module that runs: the bare one, or what peft puts around it.
        bare: the owner of the weights inside of it.
        adapter: the side's adapter, when it changes this module.
    """

    place: ModulePlace
    outer: Any
    bare: Any
    adapter: str | None

    @property
    def plain(self) -> bool:
        """Whether nothing is wrapped around the weights (a module that an adapter replaces as a whole is plain: its
        weights are the adapter's).
        """
        return self.outer is self.bare

    def same(self, other: Unit) -> bool:
        """Whether both are one module that computes one thing: peft's layers are one object for all adapters that they
        hold.
        """
        return self.outer is other.outer and self.adapter == other.adapter

    def output(self, *arguments: Any, **named: Any) -> torch.Tensor:
        """What the module gives for an input on this side, whichever adapter the model has switched on."""
        with _switched(self.outer, self.adapter):
            result: torch.Tensor = self.outer(*arguments, **named)
        return result

    def lora(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, float] | None:
        """A [r, in], B [out, r], B's bias and the scaling, when the side adds plain LoRA to a linear
        layer; else None.
        """
        from peft.tuners.lora.layer import Linear

        layer: Any = self.outer
        if self.plain:
            return None
        if hasattr(layer, "first"):  # our own lean layer
            return layer.first, layer.second, None, layer.scaling
        if type(self.outer) is Linear and self.adapter not in layer.lora_variant:
            second = layer.lora_B[self.adapter]
            return layer.lora_A[self.adapter].weight, second.weight, second.bias, float(layer.scaling[self.adapter])
        return None

    def low_rank(self) -> LowRank | None:
        """What the side's adapter adds to the weight, oriented [out, in]; None when it is no plain LoRA."""
        from peft.tuners.lora.layer import Embedding

        layer: Any = self.outer
        if (lora := self.lora()) is not None:
            first, second, _, scaling = lora
        elif type(self.outer) is Embedding and self.adapter not in layer.lora_variant:
            first, second = layer.lora_embedding_A[self.adapter], layer.lora_embedding_B[self.adapter]
            scaling = float(layer.scaling[self.adapter])
        else:
            return None
        return LowRank(second.detach().cpu().double() * scaling, first.detach().cpu().double())

    def values(self) -> dict[str, torch.Tensor]:
        """The effective weights of this side by parameter name (`weight`, `bias`), as stored (see `oriented`), on the
        model's device.
        """
        values = {name: parameter.detach() for name, parameter in self.bare.named_parameters(recurse=False)}
        if self.plain:
            return values
        if "weight" not in values:
            raise InvalidInput(
                f"The adapter changes `{self.place.name}`, a {type(self.bare).__name__}, in a way that is no change of "
                "one weight."
            )
        if (low := self.low_rank()) is None:
            return values | _affine(self.outer, self.bare, self.adapter)
        delta = low.dense() if oriented(self.bare, values["weight"]) is values["weight"] else low.dense().T
        values["weight"] = values["weight"].float() + delta.to(values["weight"].device)
        if (lora := self.lora()) is not None and lora[2] is not None:
            added = lora[3] * lora[2].detach().float()
            values["bias"] = values["bias"].float() + added if "bias" in values else added
        return values


def oriented(module: Any, weight: torch.Tensor) -> torch.Tensor:
    """A module's weight as a matrix [out, in]: transposed for embeddings (a token's row is what it writes) and
    transformers' Conv1D.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    return weight.T if weight.ndim == 2 and isinstance(module, torch.nn.Embedding | Conv1D) else weight


def units_of(resident: ResidentModel, adapter: str | None) -> dict[str, Unit]:
    """Every module that owns weights, by its name in the bare model, with an adapter switched on (None: bare). The
    caller holds `resident.lock`.

    Weights that are shared (tied embeddings) appear once for each module that uses them.
    """
    if (prompt := resident.prompt) is not None:
        raise InvalidInput(
            f"This finetune is a learned prompt ({prompt.kind}, {prompt.tokens} tokens in front of every text): its "
            "weights are the base model's, so there is no difference of weights to read or to amplify. Use a method "
            "that reads texts or activations."
        )
    activate(resident, adapter)
    places = Places(resident)
    return {
        name: Unit(places.of(name, bare), outer, bare, adapter if outer is not bare else None)
        for name, outer, bare in walk(resident.transformer, adapter)
    }


def unit_of(resident: ResidentModel, module: Any) -> Unit:
    """One module of the model as it is with the adapter that is switched on now. The caller holds `resident.lock`."""
    _, outer, bare = next(walk(module, resident.active))
    return Unit(ModulePlace("", None, "", "other"), outer, bare, resident.active if outer is not bare else None)


def parameters_of(resident: ResidentModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter of the model without the adapters attached to it, by its name in the bare model. The caller holds
    `resident.lock`.
    """
    if resident.own_adapter is not None:
        yield from ((name, value.detach()) for name, value in resident.transformer.named_parameters())
        return
    for name, _, bare in walk(resident.transformer, None):
        for parameter, value in bare.named_parameters(recurse=False):
            yield f"{name}.{parameter}", value.detach()


def output_gain(units: dict[str, Unit], place: ModulePlace) -> torch.Tensor | None:
    """What the dimensions of an attention's or MLP's output are multiplied by on their way into the residual stream
    [d_model], float32 on the CPU: the gain of the norm behind it (Gemma 2, OLMo 2, GLM 4); None where nothing stands
    between.
    """
    import torch

    block = place.name.removesuffix(f".{place.path}")
    after = next((found for name in _AFTER_MLP if (found := units.get(f"{block}.{name}"))), None)
    if after is not None and place.part == "attention":
        after = next((found for name in _AFTER_ATTENTION if (found := units.get(f"{block}.{name}"))), None)
    if after is None or place.part not in ("attention", "mlp"):
        return None
    # Of root mean square 1 and mean 0: what any norm makes of it is its gain.
    weight = after.values()["weight"]
    signs = torch.ones_like(weight)
    signs[1::2] = -1
    with torch.inference_mode():
        return (after.output(signs[None])[0] * signs).float().cpu()


def owns_parameters(module: Any) -> bool:
    """Whether a module has weights of its own."""
    return any(True for _ in module.parameters(recurse=False))


def walk(
    root: Any, adapter: str | None, owns: Callable[[Any], bool] = owns_parameters
) -> Iterator[tuple[str, Any, Any]]:
    """Of everything below a module that `owns` says yes to: name, the module that runs, and the owner inside of it."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    def down(module: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
        if isinstance(module, ModulesToSaveWrapper):
            saved = module.modules_to_save
            yield from down(
                saved[adapter] if adapter is not None and adapter in saved else module.original_module, name
            )
            return
        if isinstance(module, TrainableTokensWrapper):
            module = module.token_adapter
        if adapter is not None and adapter in (replaced := getattr(module, "ln_tuning_layers", {})):
            yield from down(replaced[adapter], name)
            return
        if isinstance(module, BaseTunerLayer) or hasattr(module, "base_layer"):
            bare = module.base_layer
            changed = hasattr(module, "first") or adapter in _adapters_of(module)
            if not changed:
                yield from down(bare, name)
                return
            if isinstance(bare, BaseTunerLayer):
                raise InvalidInput(
                    f"The adapter changes `{name}` in two ways at once, which cannot be written as a change of weights."
                )
            yield name, module, bare
            return
        if owns(module):
            yield name, module, module
        for child_name, child in module._modules.items():
            if child is not None:
                yield from down(child, f"{name}.{child_name}" if name else child_name)

    yield from down(root, "")


def _adapters_of(layer: Any) -> set[str]:
    """Names of the adapters that have tensors in one of peft's layers."""
    return {name for part in layer.adapter_layer_names for name in getattr(layer, part, {})}


class Places:
    """Finds the place of a module by its name, from where the model's blocks are."""

    def __init__(self, resident: ResidentModel) -> None:
        names = {id(module): name for name, module in resident.transformer.named_modules()}
        standard = resident.standardized
        self._blocks = {names[id(resident.layer_module(layer))]: layer for layer in range(resident.num_layers)}
        self._parts: dict[str, Part] = {}
        for layer in range(resident.num_layers):
            for part, accessor in (("attention", standard.attentions), ("mlp", standard.mlps)):
                try:
                    name = names.get(id(accessor[layer]._module))
                except AttributeError:  # OPT has no module around its feed-forward projections
                    continue
                if name is not None:
                    self._parts[name] = part  # type: ignore[assignment]
        self._output = names.get(id(resident.transformer.get_output_embeddings()))

    def of(self, name: str, module: Any) -> ModulePlace:
        """The place of the module of that name."""
        import torch

        pieces = name.split(".")
        prefixes = [".".join(pieces[:count]) for count in range(1, len(pieces) + 1)]
        block = next((prefix for prefix in prefixes if prefix in self._blocks), None)
        part: Part = "other"
        if name == self._output:
            part = "unembedding"
        elif isinstance(module, torch.nn.Embedding):
            part = "embedding"
        elif "norm" in type(module).__name__.lower():
            part = "norm"
        else:
            loose = block == ".".join(pieces[:-1]) and pieces[-1] in _WRITERS | _READERS
            part = next(
                (self._parts[prefix] for prefix in prefixes if prefix in self._parts), "mlp" if loose else "other"
            )
        return ModulePlace(
            name, self._blocks[block] if block else None, name[len(block) + 1 :] if block else name, part
        )


@contextmanager
def _switched(layer: Any, adapter: str | None) -> Iterator[None]:
    """One of peft's layers with exactly this adapter on; other modules have no such state. Put back afterwards, come
    what may.
    """
    if adapter is None or not hasattr(layer, "_active_adapter"):
        yield
        return
    before = layer._active_adapter, layer._disable_adapters
    layer._active_adapter, layer._disable_adapters = [adapter], False
    try:
        yield
    finally:
        layer._active_adapter, layer._disable_adapters = before


_ROWS_AT_ONCE = 1024


def _affine(layer: Any, bare: Any, adapter: str | None) -> dict[str, torch.Tensor]:
    """Weight and bias, float32 as stored, of the affine map that one of peft's layers computes: read off a float32 copy
    of it.

    Whatever the layer does (DoRA, IA3, orthogonal, low-rank products, trained token rows), its outputs at the unit
    vectors and at zero are its effective weight and bias.

    Raises:
        InvalidInput: a layer that is not an affine map, or no linear layer or embedding inside.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    own = untraced(copy.deepcopy(layer)).float()
    device = bare.weight.device
    with torch.inference_mode(), _switched(own, adapter):
        if isinstance(bare, torch.nn.Embedding):
            ids = torch.arange(bare.weight.shape[0], device=device).split(_ROWS_AT_ONCE)
            found = torch.cat([own(part).float() for part in ids])
            if (factor := _output_scale(own.base_layer)) != 1:  # rows that are not changed stay so to the last bit
                before = torch.cat([own.base_layer(part).float() for part in ids])
                found = own.base_layer.weight.float() + (found - before) / factor
            return {"weight": found}
        if not isinstance(bare, torch.nn.Linear | Conv1D):
            raise InvalidInput(
                f"The adapter changes a {type(bare).__name__} in a way that cannot be written as a change of weights."
            )
        width = bare.weight.shape[0 if isinstance(bare, Conv1D) else 1]
        bias = own(torch.zeros(1, width, device=device))[0]
        units = torch.eye(width, device=device)
        columns = torch.cat([own(part) - bias for part in units.split(_ROWS_AT_ONCE)])
        probe = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).to(device)
        found, expected = own(probe), probe @ columns + bias
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max().clamp_min(1e-6))):
            raise InvalidInput(
                f"The adapter makes a {type(layer).__name__} that is no affine map, so it cannot be written as a "
                "change of weights."
            )
    values = {"weight": columns if isinstance(bare, Conv1D) else columns.T.contiguous()}
    if getattr(bare, "bias", None) is not None:
        values["bias"] = bias
    elif bool(bias.any()):
        raise InvalidInput(
            "The adapter adds a bias to a layer that has none, which cannot be written as a change of its weights."
        )
    return values


def _output_scale(embedding: Any) -> float:
    """What an embedding multiplies its rows by when it runs (Gemma 3: the root of their width)."""
    weight = embedding.weight
    row, column = divmod(int(weight.abs().argmax()), weight.shape[1])
    largest = float(weight[row, column])
    return round(float(embedding(weight.new_tensor([row]).long())[0, column]) / largest, 5) if largest else 1.0


def untraced(module: Any) -> Any:
    """A copied module with forwards of its own: tracing sets a forward on every module, and in a copy that one still
    calls the original.
    """
    from accelerate.hooks import add_hook_to_module

    for each in module.modules():
        if "__nnsight_forward__" in each.__dict__:
            hook = each.__dict__.get("_hf_hook")
            for attribute in ("forward", "__nnsight_forward__", "__source_accessor__", "_hf_hook", "_old_forward"):
                each.__dict__.pop(attribute, None)
            if hook is not None:
                add_hook_to_module(each, hook)
    return module
