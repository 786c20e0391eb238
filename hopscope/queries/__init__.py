"""Two-hop queries: files, prompts, demonstrations and answers."""
