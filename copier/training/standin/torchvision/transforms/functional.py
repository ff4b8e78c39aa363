"""Empty: transformers imports it to process pictures, which training a LoRA does not."""
