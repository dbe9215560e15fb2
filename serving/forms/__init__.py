"""The form that an answer must have: request fields, grammars of tool calls, and the constraint made of them."""
