"""What the rooms expect of one another, as Protocols; an interface imports no implementation."""
