"""What every call of every service passes through, in this order, composed once in `pipeline`:
request id → deadline → identity → admission → authorize → the method; around it errors, then figures.
"""
