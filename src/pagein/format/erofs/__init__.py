"""EROFS: written, read and checked in pure Python (the kernel's fs/erofs/erofs_fs.h)."""
