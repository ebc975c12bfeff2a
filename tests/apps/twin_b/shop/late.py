WORD = "late b"
