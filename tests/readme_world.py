class Desk:
    """An inbox: letters belong into folders. What it prints is what an episode begins with."""

    effects = {"read": "read", "file": "reversible"}

    def __init__(self, task):
        self.letters, self.folders = dict(task.data["letters"]), {}

    def __str__(self):
        return f"{len(self.letters)} letters: {', '.join(self.letters)}"

    def read(self, letter: str) -> str:
        """Shows what a letter says."""
        return self.letters[letter]

    def file(self, letter: str, folder: str) -> str:
        """Puts a letter into a folder."""
        self.folders[letter] = folder
        return f"{letter} lies in {folder}"


def reward(task, history, desk):
    """Share of the letters that lie where they belong."""
    wanted = task.truth["folders"]
    return sum(desk.folders.get(letter) == folder for letter, folder in wanted.items()) / len(wanted)
