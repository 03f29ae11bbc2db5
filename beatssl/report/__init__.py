"""Tables, figures and differences of the book."""
