"""Files of ``torch.save``: where their tensors lie, read without torch and without pickle.

``weights_only`` of torch forbids code. It does not forbid work (a key that is hashed for ever, five
gigabytes of zeros) nor tensors that the file does not hold (memory that nobody has written to), and
``pickle`` forbids nothing. A state dict needs little of either: some thirty opcodes, some dozen
functions with known meanings. So the opcodes are interpreted here, by :mod:`.machine`:

- What a pickle makes stays inert. A global is its name, a tensor is a note of storage, shape and
  strides (:mod:`.values`); nothing is imported, called, hashed, compared or printed on its behalf.
- Every step costs at most its own bytes, and bytes and steps are counted: no claim is believed
  before the bytes behind it are there, no nested value is ever walked.
- A tensor is a range within a storage, a storage a range within the file. There is no way to say
  anything else, so nothing but the file's own bytes can become a weight. They are read by
  position, so a file that becomes shorter is an error and not a signal.

Torch is not asked at all. Tests hold that it reads the same: they compare bit for bit. To guard it
would be to follow each of its releases.

The reading is done in a child process all the same (:mod:`.child`), with limits on memory and time
and with an empty environment, in case that this code is wrong. The child costs some 20 ms because
this package imports next to nothing: neither zipfile nor json, and nothing else of deltastore.
Where a system has no such limits, the counts above remain, and the deadline of who waits for it.
"""
