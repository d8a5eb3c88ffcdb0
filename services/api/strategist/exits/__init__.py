"""Reducing orders: `exits` is their flow; `memory` knows what was done, `journal` keeps it on this disk, `elsewhere`
asks Postgres about other disks, `search` looks for closes that nobody answered for, `copier` puts all on record.
"""
