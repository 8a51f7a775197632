"""Raw VQA sets to samples, translation and tar shards; knows nothing of torch."""

import os

# webdataset reads it when it is imported: without it a `pipe:` URL runs a command, and a member named .pyd or .pkl is
# unpickled. We open none of those ourselves; this holds for other code that reads shards in our process.
os.environ["WDS_SECURE"] = "1"
