"""The conditional discriminators: image and mask together to a map of real/fake logits; a file each."""
