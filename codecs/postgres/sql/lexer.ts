/**
 * PostgreSQL's lexical rules over bytes (manual: "Lexical Structure"; the server's scan.l).
 *
 * Bytes, not characters: the gateway cuts and forwards the client's own bytes, and in every encoding that is not in
 * UNSAFE_ENCODINGS a byte below 0x80 is that ASCII character. Bytes from 0x80 on belong to identifiers, as in scan.l.
 */

/** Unquoted identifier or keyword. */
export const WORD = 1;
/** "identifier" or U&"identifier". */
export const QUOTED = 2;
/** '..', E'..', B'..', X'..', U&'..', $$..$$ with all the parts that continue it on further lines. */
export const STRING = 3;
export const NUMBER = 4;
/** $1 */
export const PARAM = 5;
export const OPERATOR = 6;
/** One of ( ) [ ] , ; : . and any byte that has no place in SQL. */
export const PUNCT = 7;
/** :: */
export const TYPECAST = 8;

const SPACE = 1;
const IDENT = 2;
const DIGIT = 3;
const OP = 4;

const CLASS = new Uint8Array(256);
for (const c of ' \t\n\r\f\v') CLASS[c.charCodeAt(0)] = SPACE;
for (let c = 0x80; c < 0x100; c++) CLASS[c] = IDENT;
for (const c of 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_') CLASS[c.charCodeAt(0)] = IDENT;
for (const c of '0123456789') CLASS[c.charCodeAt(0)] = DIGIT;
for (const c of '~!@#^&|`?+-*/%<>=') CLASS[c.charCodeAt(0)] = OP;

/** An operator ends in + or - only if it also has one of these. */
const KEEPS_SIGN = new Uint8Array(256);
for (const c of '~!@#^&|`?%') KEEPS_SIGN[c.charCodeAt(0)] = 1;

const TAB = 0x09;
const LF = 0x0a;
const FF = 0x0c;
const CR = 0x0d;
const BLANK = 0x20;
const DOUBLE_QUOTE = 0x22;
const DOLLAR = 0x24;
const AMPERSAND = 0x26;
const QUOTE = 0x27;
const STAR = 0x2a;
const PLUS = 0x2b;
const MINUS = 0x2d;
const DOT = 0x2e;
const SLASH = 0x2f;
const COLON = 0x3a;
const EQUALS = 0x3d;
const BACKSLASH = 0x5c;
const UNDERSCORE = 0x5f;

const LARGEST_KEPT = 1 << 16;

/** A growing list of tokens; offsets are absolute in the bytes that were read. Reused between calls to save memory. */
export class Tokens {
  count = 0;
  kind = new Uint8Array(256);
  start = new Int32Array(256);
  end = new Int32Array(256);
  /** A string, quoted identifier, dollar quote or comment has no end. */
  unterminated = false;
  /** A zero byte ended the text early: the server never sees such a text as one. */
  zero = false;

  /** Empties the list, and gives memory back that one very long text has claimed. */
  reset(): void {
    this.count = 0;
    this.unterminated = false;
    this.zero = false;
    if (this.kind.length > LARGEST_KEPT) {
      this.kind = new Uint8Array(256);
      this.start = new Int32Array(256);
      this.end = new Int32Array(256);
    }
  }

  push(kind: number, start: number, end: number): void {
    const at = this.count++;
    if (at === this.kind.length) this.#grow();
    this.kind[at] = kind;
    this.start[at] = start;
    this.end[at] = end;
  }

  #grow(): void {
    const size = this.kind.length * 2;
    const kind = new Uint8Array(size);
    const start = new Int32Array(size);
    const end = new Int32Array(size);
    kind.set(this.kind);
    start.set(this.start);
    end.set(this.end);
    this.kind = kind;
    this.start = start;
    this.end = end;
  }
}

/**
 * Reads bytes[start, end) into tokens; white space and comments leave none. Never throws: what has no end ends with the
 * text, and is flagged.
 */
export function lex(
  bytes: Uint8Array,
  start: number,
  end: number,
  standardConformingStrings: boolean,
  into: Tokens = new Tokens(),
): Tokens {
  into.reset();
  let at = start;
  while (at < end) {
    const c = bytes[at];
    const kind = CLASS[c];
    if (kind === SPACE) {
      at++;
      continue;
    }
    const from = at;
    if (kind === IDENT) {
      const next = at + 1 < end ? bytes[at + 1] : 0;
      if (next === QUOTE) {
        const lower = c | 0x20;
        // e'..' knows backslashes; b'..' and x'..' know neither them nor '' (that would be the next string). n'..' is the
        // word n (NCHAR) and a plain string.
        if (lower === 0x65) {
          at = quoted(bytes, at + 1, end, true, true, into);
          into.push(STRING, from, at);
          continue;
        }
        if (lower === 0x62 || lower === 0x78) {
          at = quoted(bytes, at + 1, end, false, false, into);
          into.push(STRING, from, at);
          continue;
        }
      } else if (next === AMPERSAND && (c | 0x20) === 0x75 && at + 2 < end) {
        if (bytes[at + 2] === QUOTE) {
          at = quoted(bytes, at + 2, end, false, true, into);
          into.push(STRING, from, at);
          continue;
        }
        if (bytes[at + 2] === DOUBLE_QUOTE) {
          at = quotedIdentifier(bytes, at + 2, end, into);
          into.push(QUOTED, from, at);
          continue;
        }
      }
      at = identifierEnd(bytes, at, end);
      into.push(WORD, from, at);
      continue;
    }
    if (kind === DIGIT || (c === DOT && at + 1 < end && CLASS[bytes[at + 1]] === DIGIT)) {
      at = numberEnd(bytes, at, end);
      into.push(NUMBER, from, at);
      continue;
    }
    if (c === QUOTE) {
      at = quoted(bytes, at, end, !standardConformingStrings, true, into);
      into.push(STRING, from, at);
      continue;
    }
    if (c === DOUBLE_QUOTE) {
      at = quotedIdentifier(bytes, at, end, into);
      into.push(QUOTED, from, at);
      continue;
    }
    if (kind === OP) {
      const next = at + 1 < end ? bytes[at + 1] : 0;
      if (c === MINUS && next === MINUS) {
        at = lineEnd(bytes, at, end);
        continue;
      }
      if (c === SLASH && next === STAR) {
        at = blockCommentEnd(bytes, at, end, into);
        continue;
      }
      at = operatorEnd(bytes, at, end);
      into.push(OPERATOR, from, at);
      continue;
    }
    if (c === DOLLAR) {
      at = dollar(bytes, at, end, into);
      continue;
    }
    if (c === DOT && at + 1 < end && bytes[at + 1] === DOT) {
      at += 2;
      into.push(OPERATOR, from, at);
      continue;
    }
    if (c === COLON && at + 1 < end && (bytes[at + 1] === COLON || bytes[at + 1] === EQUALS)) {
      at += 2;
      into.push(bytes[from + 1] === COLON ? TYPECAST : OPERATOR, from, at);
      continue;
    }
    if (c === 0) {
      into.zero = true;
      break;
    }
    at++;
    into.push(PUNCT, from, at);
  }
  return into;
}

function identifierEnd(bytes: Uint8Array, at: number, end: number): number {
  while (at < end) {
    const c = bytes[at];
    const kind = CLASS[c];
    if (kind !== IDENT && kind !== DIGIT && c !== DOLLAR) break;
    at++;
  }
  return at;
}

function lineEnd(bytes: Uint8Array, at: number, end: number): number {
  while (at < end && bytes[at] !== LF && bytes[at] !== CR) at++;
  return at;
}

function blockCommentEnd(bytes: Uint8Array, at: number, end: number, into: Tokens): number {
  let depth = 0;
  while (at < end) {
    const c = bytes[at];
    if (c === SLASH && at + 1 < end && bytes[at + 1] === STAR) {
      depth++;
      at += 2;
    } else if (c === STAR && at + 1 < end && bytes[at + 1] === SLASH) {
      at += 2;
      if (--depth === 0) return at;
    } else {
      at++;
    }
  }
  into.unterminated = true;
  return end;
}

function quotedIdentifier(bytes: Uint8Array, at: number, end: number, into: Tokens): number {
  at++;
  while (at < end) {
    if (bytes[at] === DOUBLE_QUOTE) {
      if (at + 1 < end && bytes[at + 1] === DOUBLE_QUOTE) at++;
      else return at + 1;
    }
    at++;
  }
  into.unterminated = true;
  return end;
}

/** `at` is on the opening quote. Parts of a string on further lines are read as the first part is. */
function quoted(bytes: Uint8Array, at: number, end: number, escapes: boolean, doubled: boolean, into: Tokens): number {
  at++;
  while (at < end) {
    const c = bytes[at];
    if (c === QUOTE) {
      if (doubled && at + 1 < end && bytes[at + 1] === QUOTE) {
        at += 2;
        continue;
      }
      const next = continuation(bytes, at + 1, end);
      if (next < 0) return at + 1;
      at = next + 1;
    } else {
      at += c === BACKSLASH && escapes ? 2 : 1;
    }
  }
  into.unterminated = true;
  return end;
}

/**
 * The place of the quote that continues a string, or -1: white space with at least one newline in it, in which a --
 * comment counts as white space as long as a newline ends it (scan.l: quotecontinue).
 */
function continuation(bytes: Uint8Array, at: number, end: number): number {
  let newline = false;
  while (at < end) {
    const c = bytes[at];
    if (c === QUOTE) return newline ? at : -1;
    if (c === LF || c === CR) {
      newline = true;
      at++;
    } else if (c === BLANK || c === TAB || c === FF || c === 0x0b) {
      at++;
    } else if (c === MINUS && at + 1 < end && bytes[at + 1] === MINUS) {
      at = lineEnd(bytes, at, end);
    } else {
      return -1;
    }
  }
  return -1;
}

function isHexadecimal(c: number): boolean {
  return CLASS[c] === DIGIT || ((c | 0x20) >= 0x61 && (c | 0x20) <= 0x66);
}

function digits(bytes: Uint8Array, at: number, end: number): number {
  while (at < end) {
    const c = bytes[at];
    if (CLASS[c] !== DIGIT) {
      if (c !== UNDERSCORE || at + 1 >= end || CLASS[bytes[at + 1]] !== DIGIT) break;
    }
    at++;
  }
  return at;
}

function numberEnd(bytes: Uint8Array, at: number, end: number): number {
  if (bytes[at] === 0x30 && at + 2 < end) {
    const radix = bytes[at + 1] | 0x20;
    if ((radix === 0x78 || radix === 0x6f || radix === 0x62) && isHexadecimal(bytes[at + 2])) {
      at += 2;
      while (at < end && (isHexadecimal(bytes[at]) || bytes[at] === UNDERSCORE)) at++;
      return at;
    }
  }
  at = digits(bytes, at, end);
  // 1..10 is a range of two numbers, not "1." and ".10".
  if (at < end && bytes[at] === DOT && !(at + 1 < end && bytes[at + 1] === DOT)) at = digits(bytes, at + 1, end);
  if (at < end && (bytes[at] | 0x20) === 0x65) {
    let exponent = at + 1;
    if (exponent < end && (bytes[exponent] === PLUS || bytes[exponent] === MINUS)) exponent++;
    if (exponent < end && CLASS[bytes[exponent]] === DIGIT) at = digits(bytes, exponent, end);
  }
  return at;
}

/** Longer operators do not exist (63 bytes); the bound keeps a long run of signs from being read again and again. */
const LONGEST_OPERATOR = 96;

function operatorEnd(bytes: Uint8Array, from: number, end: number): number {
  let at = from;
  let keepsSign = false;
  const bound = Math.min(end, from + LONGEST_OPERATOR);
  while (at < bound && CLASS[bytes[at]] === OP) {
    const c = bytes[at];
    if (at > from && at + 1 < end) {
      const next = bytes[at + 1];
      if ((c === MINUS && next === MINUS) || (c === SLASH && next === STAR)) break;
    }
    if (KEEPS_SIGN[c] === 1) keepsSign = true;
    at++;
  }
  if (!keepsSign) while (at - from > 1 && (bytes[at - 1] === PLUS || bytes[at - 1] === MINUS)) at--;
  return at;
}

/** $1, $tag$..$tag$, or a lone $. */
function dollar(bytes: Uint8Array, from: number, end: number, into: Tokens): number {
  let at = from + 1;
  if (at < end && CLASS[bytes[at]] === DIGIT) {
    while (at < end && CLASS[bytes[at]] === DIGIT) at++;
    into.push(PARAM, from, at);
    return at;
  }
  while (at < end && (CLASS[bytes[at]] === IDENT || (at > from + 1 && CLASS[bytes[at]] === DIGIT))) at++;
  if (at >= end || bytes[at] !== DOLLAR) {
    into.push(PUNCT, from, from + 1);
    return from + 1;
  }
  at++;
  const size = at - from;
  for (;;) {
    const close = bytes.indexOf(DOLLAR, at);
    if (close < 0 || close + size > end) {
      into.unterminated = true;
      into.push(STRING, from, end);
      return end;
    }
    let same = 1;
    while (same < size && bytes[close + same] === bytes[from + same]) same++;
    if (same === size) {
      into.push(STRING, from, close + size);
      return close + size;
    }
    at = close + 1;
  }
}
