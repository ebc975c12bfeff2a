"""What runs of an app: the rules of its fields, their defaults, and the values in effect. Pure.

One place for both sides: the catalog checks and completes an `App` by it, a node an `InstanceSpec`.
"""
