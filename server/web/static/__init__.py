"""What a browser is shown: pages of plain HTML, CSS and JavaScript, and what gives them out."""
