"""Ariadne's GraphQL ASGI app, as published, with two resolvers."""

import ledger
from ariadne import MutationType, QueryType, make_executable_schema
from ariadne.asgi import GraphQL

TYPES = "type Query { notes: [String!]! motto: String! } type Mutation { add(text: String!): Boolean! }"


def create_app(context):
    query, mutation = QueryType(), MutationType()
    query.set_field("notes", lambda *_: ledger.texts(context.database_url))
    query.set_field("motto", lambda *_: context.env.get("MOTTO", ""))
    mutation.set_field("add", lambda *_, text: ledger.add(context.database_url, text) or True)
    return GraphQL(make_executable_schema(TYPES, query, mutation))
