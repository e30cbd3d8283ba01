"""How a network is seen: its parts, its outputs, one shared pass, and how it is left as it was found."""
