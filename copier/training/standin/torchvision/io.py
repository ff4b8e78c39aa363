"""Empty: transformers imports it to read videos, where it finds the metadata of a torchvision."""
