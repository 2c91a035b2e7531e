"""What the files of a full model say before and after they are loaded: is all of it there, is it whole, is it a causal
language model, did it land?

Whatever transformers would quietly make up (weights that the files lack are random numbers there) or quietly leave out
is an error here that names the format, the architecture or the tensor. Nothing imports torch before a model is loaded.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from diffing_mcp.core.errors import InvalidInput

_NO_LANGUAGE_MODEL = re.compile(
    r"For\w*(Classification|QuestionAnswering|MultipleChoice|MaskedLM|NextSentencePrediction|Retrieval)|Reward|ValueHead"
)
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")
_SAVE_AGAIN = "Download or save it again."
UNQUANTISED = "name the unquantised model, or save it as one: load it, call `dequantize()`, then `save_pretrained`"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint. Raises InvalidInput for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"This model's {path.name} cannot be read: it is no valid JSON. {_SAVE_AGAIN}") from error
    if not isinstance(value, dict):
        raise InvalidInput(
            f"This model's {path.name} holds a {type(value).__name__} instead of a JSON object. {_SAVE_AGAIN}"
        )
    return value


def read_header(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """Tensor name -> its `dtype`, `shape` and `data_offsets`, of one safetensors file. Raises InvalidInput for a file
    that is cut off or is none.
    """
    status = path.stat()
    return _read_header(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _read_header(path: Path, size: int, _changed: int) -> Mapping[str, Mapping[str, Any]]:
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if start == b"version ":
                raise InvalidInput(
                    f"`{path.name}` is a Git LFS pointer, not the weights themselves. Fetch them with `git lfs pull`."
                )
            if len(start) < 8 or length + 8 > size:
                raise ValueError("the header is cut off")
            header = json.loads(file.read(length))
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(
            f"`{path.name}` is no whole safetensors file: its header cannot be read. {_SAVE_AGAIN}"
        ) from error
    if 8 + length + end != size:
        raise InvalidInput(
            f"`{path.name}` is cut off: its header speaks of {8 + length + end} bytes, the file has {size}. "
            f"{_SAVE_AGAIN}"
        )
    return tensors


def weight_paths(folder: Path) -> list[Path]:
    """The safetensors files that a full model is loaded from, every one there and whole.

    Raises:
        InvalidInput: naming the format that is there instead, the shards that are missing, or the file that is damaged.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        paths = [single]
    elif index.is_file():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise InvalidInput(f"This model's {index.name} has no `weight_map`. {_SAVE_AGAIN}")
        paths = [folder / str(name) for name in sorted({str(name) for name in names.values()})]
        if missing := [path.name for path in paths if not path.is_file()]:
            raise InvalidInput(
                f"{len(missing)} of the {len(paths)} weight files that {index.name} names are not there, such as "
                f"`{missing[0]}`. {_SAVE_AGAIN}"
            )
    else:
        raise InvalidInput(_no_weights(folder))
    for path in paths:
        read_header(path)
    return paths


def _no_weights(folder: Path) -> str:
    """Why there is nothing to load."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("adapter_"))
    convert = "Load it once with transformers where you trust it, call `save_pretrained`, and name that folder."
    if any(_SHARD.search(name) for name in names):
        return (
            "This model's weights come in shards, but model.safetensors.index.json, which says what is where, is "
            f"missing. {_SAVE_AGAIN}"
        )
    if others := [name for name in names if name.endswith(".safetensors")]:
        return (
            f"This model has `{others[0]}`, but no model.safetensors and no model.safetensors.index.json. Save it "
            "with `save_pretrained`."
        )
    if gguf := [name for name in names if name.endswith(".gguf")]:
        return (
            f"`{gguf[0]}` is a GGUF file; these models are read from safetensors. Name the repository that it was "
            "converted from."
        )
    if pickled := [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]:
        return (
            f"This model has no safetensors weights, only `{pickled[0]}`; that format is not read because it can "
            f"execute code. {convert}"
        )
    if foreign := [name for name in names if name.endswith((".h5", ".msgpack", ".onnx", ".npz"))]:
        return f"This model has no safetensors weights, only `{foreign[0]}`, which is another framework's. {convert}"
    return "This model has no safetensors weights. Name a folder or repository with config.json and model.safetensors."


def read_config_file(folder: Path) -> dict[str, Any]:
    """config.json. Raises InvalidInput, saying what the folder is instead, when it has none or one that names no
    architecture.
    """
    path = folder / "config.json"
    if path.is_file():
        config = read_json(path)
        if not config.get("model_type") and not config.get("auto_map"):
            raise InvalidInput(
                "This model's config.json has no `model_type`, so its architecture is unknown. Save it with "
                "`save_pretrained`."
            )
        return config
    if (folder / "model_index.json").is_file():
        raise InvalidInput(
            "This is a diffusion pipeline (model_index.json), not a language model. Name a causal language model."
        )
    if (folder / "adapter_config.json").is_file():
        raise InvalidInput(
            "This is an adapter (adapter_config.json) without its model. Name the model, and the adapter as a side of "
            "a pair."
        )
    if any(folder.glob("*.gguf")):
        raise InvalidInput(_no_weights(folder))
    raise InvalidInput(
        "This folder has no config.json. Name one with config.json and safetensors weights, as `save_pretrained` "
        "writes it."
    )


def config_problem(stored: Mapping[str, Any], error: Exception) -> str:
    """Why transformers does not read a configuration, in one or two sentences."""
    import transformers

    kind = stored.get("model_type", "of its own")
    if "trust_remote_code" in str(error):
        return (
            f"The architecture `{kind}` is code that comes with the model, which is not run unasked. If you trust it, "
            "describe the model in a catalogue folder (DIFFING_CATALOGUE_FOLDERS) with `trust_remote_code: true`."
        )
    if isinstance(error, ImportError):
        return f"The architecture `{kind}` needs a package that is not installed: {_first_line(error)}"
    if stored.get("model_type") not in transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES:
        return (
            f"transformers {transformers.__version__} does not know the architecture `{kind}`. Check `model_type`, or "
            "install a newer transformers."
        )
    return (
        f"The configuration of this `{kind}` model cannot be read ({type(error).__name__}): a value of its "
        f"config.json is wrong. {_SAVE_AGAIN}"
    )


def check_kind(config: Any, stored: Mapping[str, Any]) -> None:
    """Raise InvalidInput unless a transformers configuration is one of a language model that predicts the
    next token.
    """
    from transformers import AutoModelForMaskedLM

    architecture = next(iter(stored.get("architectures") or ()), None)
    kind = f"`{architecture or config.model_type}`"
    choose = "Name a causal language model (a decoder that predicts the next token)."
    if getattr(config, "is_encoder_decoder", False):
        raise InvalidInput(f"{kind} has an encoder and a decoder; two texts would be needed, one for each. {choose}")
    if architecture is not None and _NO_LANGUAGE_MODEL.search(architecture):
        raise InvalidInput(f"{kind} has a head for another task instead of one for the next token. {choose}")
    if getattr(config, "is_decoder", True) is False and type(config) in AutoModelForMaskedLM._model_mapping:
        raise InvalidInput(
            f"{kind} is an encoder: its tokens see those after them, so it predicts no next token. {choose}"
        )
    if not stored.get("auto_map") and model_class(config) is None:
        raise InvalidInput(f"{kind} (`{config.model_type}`) is no language model of transformers. {choose}")
    if method := quantisation(stored):
        from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

        if not any(known == method or known.startswith(f"{method}_") for known in AUTO_QUANTIZER_MAPPING):
            raise InvalidInput(
                f"The weights are quantised by `{method}`, which transformers does not read; {UNQUANTISED}."
            )


def model_class(config: Any) -> Any | None:
    """transformers' auto class that loads a language model of this configuration, image-text models included; None:
    there is none.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return next(
        (each for each in (AutoModelForCausalLM, AutoModelForImageTextToText) if type(config) in each._model_mapping),
        None,
    )


def quantisation(stored: Mapping[str, Any]) -> str | None:
    """How the weights are quantised by the word of config.json; None: not."""
    found = stored.get("quantization_config") or stored.get("compression_config")
    if not isinstance(found, dict):
        return None
    return str(
        found.get("quant_method")
        or ("bitsandbytes" if found.get("load_in_4bit") or found.get("load_in_8bit") else "a method it does not name")
    )


def check_stored_types(paths: list[Path], stored: Mapping[str, Any]) -> None:
    """Raise InvalidInput for matrices stored as whole numbers that no quantisation explains: read as they stand they
    mean nothing.
    """
    if quantisation(stored):
        return
    for path in paths:
        for name, tensor in read_header(path).items():
            if tensor["dtype"] in _INTEGERS and len(tensor["shape"]) > 1 and name.endswith(".weight"):
                raise InvalidInput(
                    f"`{name}` is stored as {tensor['dtype']}, and config.json names no quantisation, so its values "
                    f"cannot be told; {UNQUANTISED}."
                )


def load_problem(stored: Mapping[str, Any], error: Exception) -> str:
    """Why transformers does not load the weights, in one or two sentences."""
    architecture = next(iter(stored.get("architectures") or ()), None) or stored.get("model_type")
    if method := quantisation(stored):
        return (
            f"The weights are quantised by `{method}` and cannot be loaded here: {_first_line(error)} Or {UNQUANTISED}."
        )
    if isinstance(error, ImportError):
        return f"`{architecture}` needs a package that is not installed: {_first_line(error)}"
    if "size mismatch" in str(error) or "mismatched" in str(error):
        return (
            f"The weights do not have the shapes that config.json gives a `{architecture}`: it is another model's. "
            f"{_SAVE_AGAIN}"
        )
    return (
        f"The weights of this `{architecture}` cannot be loaded ({type(error).__name__}). It needs config.json and "
        "*.safetensors of a causal language model that this version of transformers reads."
    )


def _first_line(error: Exception) -> str:
    """The first line of an error that names a package; those of missing files would show paths."""
    if not isinstance(error, ImportError):
        return f"{type(error).__name__}."
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].strip()
    return line if line.endswith(".") else line + "."


@contextmanager
def without_adapter(folder: Path) -> Iterator[Path]:
    """The folder, or links to all of it but an adapter that lies in it: transformers would lay that on the model
    unasked.
    """
    if not (folder / "adapter_config.json").is_file():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="model-") as scratch:
        for path in folder.iterdir():
            if not path.name.startswith("adapter_"):
                (Path(scratch) / path.name).symlink_to(path.resolve(), target_is_directory=path.is_dir())
        yield Path(scratch)


def check_landed(transformer: Any, info: Mapping[str, Any]) -> tuple[str, ...]:
    """What is to be said about weights of the files that the model has no place for. `info` is transformers' loading
    info.

    Raises:
        InvalidInput: the model has weights that the files lack (they are random numbers now), or lacks a part of its
            blocks that the files have.
    """
    kind = type(transformer).__name__
    if missing := sorted(info.get("missing_keys") or ()):
        raise InvalidInput(
            f"The files lack {len(missing)} of the weights of a {kind}, such as `{missing[0]}`; they would be random "
            "numbers. The checkpoint is incomplete, or its config.json is another model's."
        )
    unexpected = sorted(info.get("unexpected_keys") or ())
    blocks = {match[1] for name, _ in transformer.named_parameters() if (match := re.match(r"(.*?)\b\d+\.", name))}
    if inside := [
        name for name in unexpected if any(prefix and re.match(re.escape(prefix) + r"\d+\.", name) for prefix in blocks)
    ]:
        raise InvalidInput(
            f"The files have {len(inside)} weights inside of blocks that a {kind} with this config.json has no place "
            f"for, such as `{inside[0]}`: it would run as another model than the one that was saved. Check the "
            "config.json (number of layers, biases, quantisation)."
        )
    if not unexpected:
        return ()
    return (
        (
            f"{len(unexpected)} weights of the files are not part of the language model ({kind}) and are not "
            f"compared, such as `{unexpected[0]}`."
        ),
    )
