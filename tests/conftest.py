"""Its presence puts this folder on the path: `import golden_lib` works below.

(So pytest does with the folder of every conftest.py that is in no package.)
"""
