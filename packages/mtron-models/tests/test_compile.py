import pytest
import torch
from torch._dynamo.utils import counters

from mtron_models import Context, RandomKey

# torch 2.13 uses deprecated parts of itself when its compiler is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def context_of(step, rows, documents):
    boundaries = None if documents is None else torch.tensor(documents, dtype=torch.int32)
    ids = torch.arange(rows) + 100 * step
    return Context(cu_seqlens=boundaries, max_seqlen=step, random=RandomKey(3, step, ids))


def train(model, loss_of, tokens, documents=None, steps=4):
    """Losses and gradients of some steps, with other tokens and other keys in each."""
    results = []
    for step in range(steps):
        inputs, labels = tokens(2, 16, seed=step)
        model.zero_grad()
        weights = torch.full((2, 16), 1 / 32)
        loss = loss_of(inputs, labels, weights, context_of(step, 2, documents))
        loss.backward()
        results += [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]
    return results


DOCUMENTS = [0, 5, 20, 32]


@pytest.mark.parametrize(
    ("backend", "documents"),
    [
        pytest.param("aot_eager", None, marks=pytest.mark.slow),
        ("aot_eager", DOCUMENTS),
        ("inductor", None),
        pytest.param("inductor", DOCUMENTS, marks=pytest.mark.slow),
    ],
)
def test_compiled_once_and_equal(backend, documents, make_model, tokens, tolerances):
    model = make_model(num_hidden_layers=2, hidden_dropout=0.1)
    model.head_loss.chunk_tokens = 20
    expected = train(model, model.train_loss, tokens, documents)
    compiled = torch.compile(model.train_loss, fullgraph=True, backend=backend)
    limit = tolerances.FP32_COMPILED
    for ours, eager in zip(train(model, compiled, tokens, documents), expected, strict=True):
        torch.testing.assert_close(ours, eager, rtol=limit, atol=limit)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_without_dropout_and_context_there_is_one_graph(make_model, tokens):
    model = make_model(num_hidden_layers=1)
    compiled = torch.compile(model.train_loss, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        inputs, labels = tokens(2, 16, seed=seed)
        compiled(inputs, labels, torch.ones(2, 16))
    assert counters["stats"]["unique_graphs"] == 1


def test_another_number_of_documents_compiles_once_more_at_most(make_model, tokens):
    model = make_model(num_hidden_layers=1)
    compiled = torch.compile(model.train_loss, fullgraph=True, backend="aot_eager")
    inputs, labels = tokens(2, 16)
    for documents in ([0, 32], [0, 5, 32], [0, 4, 9, 32], [0, 1, 2, 3, 4, 32], [0, 9, 32]):
        context = Context(cu_seqlens=torch.tensor(documents), max_seqlen=max(documents))
        compiled(inputs, labels, torch.ones(2, 16), context)
    assert counters["stats"]["unique_graphs"] <= 2


def test_positions_compile(make_model, tokens):
    model = make_model(num_hidden_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    inputs, _ = tokens(2, 16)
    for shift in range(3):
        context = Context(positions=torch.arange(16).expand(2, 16) + shift)
        assert torch.equal(compiled(inputs, context), model(inputs, context))
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
def test_every_decoder_compiles_once(plain_decoder, family_model, tokens, tolerances):
    model = family_model(plain_decoder, torch.float32, initializer_range=0.05)
    expected = train(model, model.train_loss, tokens, DOCUMENTS)
    compiled = torch.compile(model.train_loss, fullgraph=True, backend="aot_eager")
    limit = tolerances.FP32_COMPILED
    for ours, eager in zip(train(model, compiled, tokens, DOCUMENTS), expected, strict=True):
        torch.testing.assert_close(ours, eager, rtol=limit, atol=limit)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
