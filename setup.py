"Pass the metadata of settings.ini to setuptools."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

ini = ConfigParser(delimiters=['='])
ini.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
cfg = ini['DEFAULT']


def lines(key): return [o for o in cfg.get(key, '').splitlines() if o]


setup(
    version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(), author=cfg['author'],
    license=cfg['license'], python_requires='>=' + cfg['min_python'],
    packages=find_packages(include=['llm_distill', 'llm_distill.*']),
    package_data={'llm_distill': ['recordings/*', 'templates/*']}, install_requires=lines('requirements'),
    extras_require={k.removesuffix('_requirements'): lines(k) for k in cfg if k.endswith('_requirements')},
    entry_points={'console_scripts': lines('console_scripts'), 'nbdev': ['llm_distill = llm_distill._modidx:d']},
    classifiers=['Programming Language :: Python :: 3', 'Programming Language :: Python :: 3 :: Only', 'Intended Audience :: Developers',
                 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
)
