WORD = "settings b"
