"""What the documentation site has beside the files of docs/; see mkdocs.yml."""
