"""Training any MobileVLM on pictures of one's own: what tools/finetune.py is made of, data to weights."""
