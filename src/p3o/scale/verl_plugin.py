"""Importing this puts P3O into verl's table: ``VERL_USE_EXTERNAL_MODULES=p3o.scale.verl_plugin``.

Named there, it is imported with verl itself, in every process, and a failure ends the process. verl's entry points would be
shorter, but verl passes over one that fails without a word.
"""

from p3o.scale.verl import register

register()
