"""Files of tensors: safetensors header, reader and writer, family detection, key names."""
