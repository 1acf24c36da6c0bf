"""From where a set is published to indexed shards: its rows, its pictures by address, and the store that keeps them."""
