"""The embedded world: captioned drawings, their detector, and two small diffusers checkpoints."""
