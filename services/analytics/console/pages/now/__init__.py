"""Now: is anything wrong, and what did the model just say?"""
