"""Images: files read, input checked, pixels prepared."""
