WORD = "late a"
