"""One training loop, the forward process, examples; LoRA fine-tuning and pretraining on captioned images."""
