"""Published folders to rows, beats and features."""
