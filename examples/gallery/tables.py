"""Published tables that are short enough to stand here."""

import numpy as np


def _numbers(text: str, dtype: type = np.int32) -> np.ndarray:
    return np.array(text.split(), dtype)


TEAMS = ("Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore")
WINS = np.array(
    [
        [0, 7, 9, 7, 7, 9, 11],
        [6, 0, 7, 5, 11, 9, 9],
        [4, 6, 0, 7, 7, 8, 12],
        [6, 8, 6, 0, 6, 7, 10],
        [6, 2, 6, 7, 0, 7, 12],
        [4, 4, 5, 6, 6, 0, 6],
        [2, 4, 1, 3, 1, 7, 0],
    ]
)
"""Games that the team of a row won against that of a column (Agresti, Categorical Data Analysis, 1990)."""
RATS = _numbers(
    """
    151 199 246 283 320 145 199 249 293 354 147 214 263 312 328 155 200 237 272 297 135 188 230 280 323 159 210
    252 298 331 141 189 231 275 305 159 201 248 297 338 177 236 285 350 376 134 182 220 260 296 160 208 261 313
    352 143 188 220 273 314 154 200 244 289 325 171 221 270 326 358 163 216 242 281 312 160 207 248 288 324 142
    187 234 280 316 156 203 243 283 317 157 212 259 307 336 152 203 246 286 321 154 205 253 298 334 139 190 225
    267 302 146 191 229 272 302 157 211 250 285 323 132 185 237 286 331 160 207 257 303 345 169 216 261 295 333
    157 205 248 289 316 137 180 219 258 291 153 200 244 286 324
    """,
    np.float32,
).reshape(30, 5)
"""Weights of rats, in grams, on days 8, 15, 22, 29 and 36 (Gelfand, Hills, Racine-Poon & Smith, 1990)."""
KICKS = {0: 109, 1: 65, 2: 22, 3: 3, 4: 1}
"""Prussian corps and years by deaths from kicks of horses (Bortkiewicz, 1898)."""
DRUG = ((6, 6, 6, 7, 10, 13, 16, 22, 23), (6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35))
"""Weeks of remission under 6-mercaptopurine: until a relapse, or the end of the study (Freireich and others, 1963)."""
PLACEBO = (1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23)
"""The same under placebo, all until a relapse."""
EARTHQUAKES = _numbers(
    """
    13 14 8 10 16 26 32 27 18 32 36 24 22 23 22 18 25 21 21 14 8 11 14 23 18 17 19 20 22 19 13 26 13 14 22 24 21
    22 26 21 23 24 27 41 31 27 35 26 28 36 39 21 17 22 17 19 15 34 10 15 22 18 15 20 15 22 19 16 30 27 29 23 20
    16 21 21 25 16 18 15 18 14 10 15 8 15 6 11 8 7 18 16 13 12 13 20 15 16 12 18 15 16 13 15 16 11 11
    """
)
"""Earthquakes of magnitude 7 and more in the world, 1900 to 2006 (Zucchini & MacDonald, 2009)."""
DISASTERS = _numbers(
    """
    4 5 4 0 1 4 3 4 0 6 3 3 4 0 2 6 3 3 5 4 5 3 1 4 4 1 5 5 3 4 2 5 2 2 3 4 2 1 3 -1 2 1 1 1 1 3 0 0 1 0 1 1 0 0
    3 1 0 3 2 2 0 1 1 1 0 1 0 1 0 0 0 2 1 0 0 0 1 1 0 2 3 3 1 -1 2 1 1 1 1 2 4 2 0 0 1 4 0 0 0 1 0 0 0 0 0 1 0 0
    1 0 1
    """
)
"""Disasters in British coal mines, 1851 to 1961, in two years not known (-1) (Jarrett, 1979, as PyMC has it)."""
LSAT = _numbers(
    """
    3 6 2 11 1 1 3 4 1 8 0 16 0 3 2 15 10 29 14 81 3 28 15 80 16 56 21 173 11 61 28 298
    """
)
"""People by their answers to five items of the LSAT, from 00000 to 11111 in binary order (Bock & Lieberman, 1970)."""
CARS = _numbers(
    """
    4 2 4 10 7 4 7 22 8 16 9 10 10 18 10 26 10 34 11 17 11 28 12 14 12 20 12 24 12 28 13 26 13 34 13 34 13 46 14
    26 14 36 14 60 14 80 15 20 15 26 15 54 16 32 16 40 17 32 17 40 17 50 18 42 18 56 18 76 18 84 19 36 19 46 19
    68 20 32 20 48 20 52 20 56 20 64 22 66 23 54 24 70 24 92 24 93 24 120 25 85
    """,
    np.float32,
).reshape(-1, 2)
"""Speeds of cars in miles an hour, and what they took to stop, in feet (Ezekiel, 1930; `cars` in R)."""
