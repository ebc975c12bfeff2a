"""How an app's data directory goes from the node that has it to the node that the app moves to.

The source's half offers, freezes and streams it, the target's half receives it. Neither decides who owns it.
"""
