"""How a distilled set is stored: precisions of arrays, images coded as one picture, and the bytes of the file."""
