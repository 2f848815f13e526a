"""The proof that a family is that of `transformers`: `check_family`, for tests of all families.

A model of `transformers` with random weights is converted to ours, compared (configuration,
outputs, every gradient), and converted back (every bit of the weights, every key of its config).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

import mtron_ckpt
from mtron_ckpt import Checkpoint, LocalArray, Metadata
from mtron_ckpt.torch_io import from_torch, to_torch
from mtron_models import ModelConfig, build, config_from_dict

LOGITS = 2e-5
"""Absolute, in fp32, of outputs of order one."""

GRADIENT = 1e-4
"""Of the larger of a gradient's norm and 0.01 of the model's largest one, in fp32."""

Outputs = Tensor | tuple[Tensor, ...]
Run = Callable[[Any], Outputs]
"""Runs a model on the test's inputs."""


@dataclass(frozen=True)
class Proven:
    """What `check_family` has made, for checks of the family's own.

    Attributes:
        theirs: the model of `transformers`, with random weights.
        ours: the converted model.
        checkpoint: the converted checkpoint.
        notes: of the conversion to ours.
    """

    theirs: PreTrainedModel
    ours: nn.Module
    checkpoint: Checkpoint
    notes: tuple[str, ...]


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def tokens() -> Callable[..., Tensor]:
    """Random tokens `[batch, seq]`, the same at every call."""

    def draw(batch: int, seq_len: int, vocab_size: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(vocab_size, (batch, seq_len), generator=generator)

    return draw


@pytest.fixture
def check_family(tmp_path: Path) -> Callable[..., Proven]:
    """Proves one model: `check_family(theirs, inputs)`, or with how to run the two models.

    `their_run(model)` and `our_run(model)` return a tensor or a tuple of tensors to be compared;
    without them, both models get the tokens `inputs` and their logits are compared.
    `beside` names fields of our config that their config.json does not have.
    """

    def check(
        theirs: PreTrainedModel,
        inputs: Tensor | None = None,
        *,
        their_run: Run | None = None,
        our_run: Run | None = None,
        beside: tuple[str, ...] = (),
    ) -> Proven:
        their_run = their_run or (lambda model: model(inputs).logits)
        our_run = our_run or (lambda model: model(inputs))
        theirs.set_attn_implementation("eager")
        theirs.eval()
        give_random_weights(theirs)
        theirs.save_pretrained(tmp_path / "theirs")
        report = mtron_ckpt.convert(tmp_path / "theirs", tmp_path / "ours", to="mtron")
        checkpoint = mtron_ckpt.open(tmp_path / "ours")
        config = checked_config(checkpoint, tmp_path / "theirs", beside)
        ours = loaded(config, checkpoint)
        check_outputs(ours, theirs, our_run, their_run)
        check_gradients(ours, theirs, tmp_path)
        check_way_back(checkpoint, tmp_path)
        check_new_export(theirs, checkpoint, their_run, tmp_path)
        return Proven(theirs, ours, checkpoint, report.notes)

    return check


def give_random_weights(model: PreTrainedModel) -> None:
    """Make every weight matter: fresh models have biases of 0, norms of 1 and tiny matrices."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*model.parameters(), *persistent_buffers(model)):
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim >= 2:
                tensor.copy_(noise * tensor.shape[-1] ** -0.5)
            else:
                tensor.add_(0.2 * noise)


def persistent_buffers(model: nn.Module) -> list[Tensor]:
    """The buffers of floating-point type that are saved with the weights."""
    saved = model.state_dict(keep_vars=True)
    return [
        buffer
        for name, buffer in model.named_buffers()
        if name in saved and buffer.is_floating_point()
    ]


def as_json(value: Any) -> Any:
    """`value` as it comes back from a JSON file."""
    return json.loads(json.dumps(value))


def checked_config(
    checkpoint: Checkpoint, their_folder: Path, beside: tuple[str, ...]
) -> ModelConfig:
    """Our config, which says all that the model's class can say, and the same as config.json."""
    stored = checkpoint.config["model"]
    config = config_from_dict(stored)
    assert as_json(config.model_dump()) == stored, "the converter left fields to their defaults"
    read = as_json(config_from_dict(read_json(their_folder / "config.json")).model_dump())
    differ = {name for name in stored if stored[name] != read[name]} - set(beside)
    assert not differ, (
        "config_from_dict reads config.json differently from the converter: "
        + ", ".join(f"{name} = {read[name]!r} and {stored[name]!r}" for name in sorted(differ))
    )
    return config


def loaded(config: ModelConfig, checkpoint: Checkpoint) -> nn.Module:
    """Our model with the weights of a checkpoint, which are exactly those that it has."""
    model = build(config, device="cpu")
    found = {name.removeprefix("param/"): name for name in checkpoint.names("param")}
    tensors = named_tensors(model)
    assert set(found) == set(tensors), (
        f"the model lacks {sorted(set(found) - set(tensors))}, "
        f"the checkpoint lacks {sorted(set(tensors) - set(found))}"
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    assert shapes == config.parameter_shapes()
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(to_torch(checkpoint.read(found[name])))
    return model.eval()


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers; a tied parameter by its first name."""
    found: dict[int, str] = {}
    tensors = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        found.setdefault(id(tensor), name)
    return {name: tensors[name] for name in found.values()}


def in_a_tuple(outputs: Outputs) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def check_outputs(ours: nn.Module, theirs: nn.Module, our_run: Run, their_run: Run) -> None:
    """Compare the outputs, and leave the gradients of the same random sum of them."""
    expected, found = in_a_tuple(their_run(theirs)), in_a_tuple(our_run(ours))
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in expected]
    generator = torch.Generator().manual_seed(2)
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        size = other.detach().square().mean().sqrt().item()
        assert size > 0.1, f"output {index} is {size:.1e}, too small to show an error"
        worst = (one - other).abs().max().item()
        assert worst < LOGITS, f"output {index} of size {size:.2g} differs by {worst:.1e}"
        weights = torch.randn(other.shape, generator=generator)
        (other * weights).sum().backward(retain_graph=True)
        (one * weights).sum().backward(retain_graph=True)


def check_gradients(ours: nn.Module, theirs: PreTrainedModel, folder: Path) -> None:
    """Compare every gradient: theirs are converted like weights, so that they get our names."""
    gradients: dict[str, Tensor] = {}
    weights = {name: p.detach().clone() for name, p in theirs.named_parameters()}
    with torch.no_grad():
        for parameter in theirs.parameters():
            gradient = parameter.grad
            parameter.copy_(torch.zeros_like(parameter) if gradient is None else gradient)
    theirs.save_pretrained(folder / "their_gradients")
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(weights[name])
    mtron_ckpt.convert(folder / "their_gradients", folder / "gradients", to="mtron")
    converted = mtron_ckpt.open(folder / "gradients")
    for name, _ in ours.named_parameters():
        gradients[name] = to_torch(converted.read(f"param/{name}"))
    largest = max(gradient.norm().item() for gradient in gradients.values())
    problems = []
    for name, parameter in ours.named_parameters():
        if not parameter.requires_grad:  # a saved buffer of theirs, such as a router's bias
            assert parameter.grad is None
            continue
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        scale = max(gradients[name].norm().item(), 0.01 * largest)
        error = (gradient - gradients[name]).norm().item() / scale
        if not error < GRADIENT:
            problems.append(f"{name}: off by {error:.1e} of {scale:.1e}")
    assert not problems, "gradients differ\n" + "\n".join(problems)


def check_way_back(checkpoint: Checkpoint, folder: Path) -> None:
    """The checkpoint that came from them becomes what it was: weights and config.json, bitwise."""
    mtron_ckpt.convert(folder / "ours", folder / "back", to="hf")
    original, back = ((folder / name / "config.json") for name in ("theirs", "back"))
    assert back.read_bytes() == original.read_bytes()
    check_weights(folder / "theirs", folder / "back")


def check_weights(expected: Path, found: Path) -> None:
    """Compare the weights of two directories bit by bit."""
    theirs, back = (load_file(path / "model.safetensors") for path in (expected, found))
    assert set(back) == set(theirs)
    differ = [
        name
        for name, tensor in theirs.items()
        if back[name].dtype != tensor.dtype or not torch.equal(bits(back[name]), bits(tensor))
    ]
    assert not differ, f"not the same bits: {', '.join(differ)}"


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def check_new_export(
    theirs: PreTrainedModel, checkpoint: Checkpoint, their_run: Run, folder: Path
) -> None:
    """A checkpoint of a training run, which has no config.json of theirs, loads in their class."""
    arrays = {
        name: LocalArray.whole(from_torch(to_torch(checkpoint.read(name))))
        for name in checkpoint.names("param")
    }
    mtron_ckpt.save(folder / "trained", arrays, Metadata(1, dict(checkpoint.config))).wait()
    mtron_ckpt.convert(folder / "trained", folder / "new", to="hf")
    expected, found = (
        AutoConfig.from_pretrained(folder / name).to_dict() for name in ("theirs", "new")
    )
    differ = {
        name: (expected.get(name), found.get(name))
        for name in {*expected, *found} - {"_name_or_path", "transformers_version"}
        if expected.get(name) != found.get(name)
    }
    assert not differ, f"transformers understands config.json otherwise (as saved, new): {differ}"
    again = type(theirs).from_pretrained(folder / "new", attn_implementation="eager").eval()
    with torch.no_grad():
        outputs = zip(in_a_tuple(their_run(theirs)), in_a_tuple(their_run(again)), strict=True)
        assert all(torch.equal(one, other) for one, other in outputs)


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))
