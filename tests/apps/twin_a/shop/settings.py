WORD = "settings a"
