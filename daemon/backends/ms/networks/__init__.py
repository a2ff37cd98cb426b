"""The networks MindPort ships. A model directory gets a copy; nothing imports them from here."""
