/**
 * A small assembler for eBPF. Encoding and numbers: RFC 9669 (BPF Instruction Set Architecture) and linux/bpf.h. A program is a
 * list of what the functions below return; `assemble` turns it into bytes.
 */

/** R0: result; R1-R5: arguments, lost in a call; R6-R9: kept over calls; R10: end of the 512 bytes of stack, read-only. */
export type Register = 'r0' | 'r1' | 'r2' | 'r3' | 'r4' | 'r5' | 'r6' | 'r7' | 'r8' | 'r9' | 'r10';

/** A second operand: a register, or a 32-bit number, which 64-bit instructions extend with its sign. */
export type Operand = Register | number;

/** Width of a load or store, in bytes. */
export type Width = 1 | 2 | 4 | 8;

/** One instruction; `to` names the label that a jump goes to. `wide` is the upper half of a 64-bit immediate. */
export interface Instruction {
  readonly code: number;
  readonly destination: Register;
  readonly source: Register | 'map';
  readonly offset: number;
  readonly to?: string;
  readonly immediate: number;
  readonly wide?: number;
}

/** A place in the program that jumps can name. */
export interface Label {
  readonly label: string;
}

// Instruction classes, the lowest three bits of the code (RFC 9669 section 2).
const LD = 0x00;
const LDX = 0x01;
const ST = 0x02;
const STX = 0x03;
const ALU = 0x04;
const JMP = 0x05;
const JMP32 = 0x06;
const ALU64 = 0x07;

/** The second operand is a register. */
const FROM_REGISTER = 0x08;
/** Memory at an address plus an offset. */
const MEM = 0x60;
const WIDTHS: Readonly<Record<Width, number>> = { 4: 0x00, 2: 0x08, 1: 0x10, 8: 0x18 };

const ARITHMETIC = { add: 0x00, sub: 0x10, or: 0x40, and: 0x50, lsh: 0x60, rsh: 0x70, mov: 0xb0 } as const;
const CONDITIONS = { '==': 0x10, '>': 0x20, has: 0x40, '!=': 0x50, 's>': 0x60, '<': 0xa0 } as const;

/** `>` and `<` compare without sign, `s>` with; `has`: they have a bit in common. */
export type Condition = keyof typeof CONDITIONS;

const JUMP_ALWAYS = 0x00;
const CALL = 0x80;
const EXIT = 0x90;
const BYTE_ORDER = 0xd0;
/** The immediate of a 64-bit load is the descriptor of a map (linux/bpf.h, BPF_PSEUDO_MAP_FD). */
const MAP_DESCRIPTOR = 1;

function instruction(code: number, parts: Partial<Instruction> = {}): Instruction {
  return { code, destination: 'r0', source: 'r0', offset: 0, immediate: 0, ...parts };
}

function withOperand(code: number, operand: Operand, parts: Partial<Instruction>): Instruction {
  if (typeof operand === 'number') return instruction(code, { ...parts, immediate: operand });
  return instruction(code | FROM_REGISTER, { ...parts, source: operand });
}

/** 64-bit: destination = destination (operation) operand. */
export function alu(operation: keyof typeof ARITHMETIC, destination: Register, operand: Operand): Instruction {
  return withOperand(ALU64 | ARITHMETIC[operation], operand, { destination });
}

/** The same with the lower 32 bits; the upper ones become zero. */
export function alu32(operation: keyof typeof ARITHMETIC, destination: Register, operand: Operand): Instruction {
  return withOperand(ALU | ARITHMETIC[operation], operand, { destination });
}

/** destination = operand. */
export function move(destination: Register, operand: Operand): Instruction {
  return alu('mov', destination, operand);
}

/** Turns the lower bits from network order into the machine's, or back; the bits above become zero. */
export function networkOrder(destination: Register, bits: 16 | 32): Instruction {
  // The source bit says "to big-endian"; on a big-endian machine that changes nothing.
  return instruction(ALU | BYTE_ORDER | FROM_REGISTER, { destination, immediate: bits });
}

/** destination = memory at (base + offset), without sign. */
export function load(width: Width, destination: Register, base: Register, offset: number): Instruction {
  return instruction(LDX | MEM | WIDTHS[width], { destination, source: base, offset });
}

/** Memory at (base + offset) = operand. */
export function store(width: Width, base: Register, offset: number, operand: Operand): Instruction {
  if (typeof operand === 'number') {
    return instruction(ST | MEM | WIDTHS[width], { destination: base, offset, immediate: operand });
  }
  return instruction(STX | MEM | WIDTHS[width], { destination: base, source: operand, offset });
}

/** destination = a map, for a helper's argument. Takes two slots. @param fd descriptor of the map */
export function loadMap(destination: Register, fd: number): Instruction {
  return instruction(LD | WIDTHS[8], { destination, source: 'map', immediate: fd, wide: 0 });
}

/** Goes to a label. */
export function jump(to: string): Instruction {
  return instruction(JMP | JUMP_ALWAYS, { to });
}

/** Goes to a label when the 64-bit comparison holds. */
export function jumpIf(left: Register, condition: Condition, right: Operand, to: string): Instruction {
  return withOperand(JMP | CONDITIONS[condition], right, { destination: left, to });
}

/** Goes to a label when the comparison of the lower 32 bits holds. */
export function jumpIf32(left: Register, condition: Condition, right: Operand, to: string): Instruction {
  return withOperand(JMP32 | CONDITIONS[condition], right, { destination: left, to });
}

/** Calls a helper of the kernel. @param helper its number, enum bpf_func_id in linux/bpf.h */
export function call(helper: number): Instruction {
  return instruction(JMP | CALL, { immediate: helper });
}

/** Ends the program with R0. */
export function exit(): Instruction {
  return instruction(JMP | EXIT);
}

/** A place that jumps can name. */
export function label(name: string): Label {
  return { label: name };
}

function isLabel(part: Instruction | Label): part is Label {
  return 'label' in part;
}

function slots(part: Instruction | Label): number {
  if (isLabel(part)) return 0;
  return part.wide === undefined ? 1 : 2;
}

/** Bytes of one slot (`struct bpf_insn`). */
export const SLOT_SIZE = 8;

/**
 * The program as an array of `struct bpf_insn` of a little-endian machine. Throws a RangeError for a label that is missing or
 * there twice, and for a number that does not fit: mistakes of whoever wrote the program.
 */
export function assemble(parts: readonly (Instruction | Label)[]): Uint8Array {
  const labels = new Map<string, number>();
  let length = 0;
  for (const part of parts) {
    if (isLabel(part)) {
      if (labels.has(part.label)) throw new RangeError(`the label ${part.label} is there twice`);
      labels.set(part.label, length);
    }
    length += slots(part);
  }
  const view = new DataView(new ArrayBuffer(length * SLOT_SIZE));
  let slot = 0;
  for (const part of parts) {
    if (isLabel(part)) continue;
    let offset = part.offset;
    if (part.to !== undefined) {
      const target = labels.get(part.to);
      if (target === undefined) throw new RangeError(`the label ${part.to} is missing`);
      // Jumps count from the next instruction.
      offset = target - slot - 1;
    }
    if (offset !== (offset << 16) >> 16) throw new RangeError(`the offset ${offset} does not fit`);
    if (part.immediate !== (part.immediate | 0)) throw new RangeError(`the number ${part.immediate} does not fit`);
    const at = slot * SLOT_SIZE;
    view.setUint8(at, part.code);
    view.setUint8(at + 1, registerNumber(part.destination) | (registerNumber(part.source) << 4));
    view.setInt16(at + 2, offset, true);
    view.setInt32(at + 4, part.immediate, true);
    if (part.wide !== undefined) view.setInt32(at + SLOT_SIZE + 4, part.wide, true);
    slot += slots(part);
  }
  return new Uint8Array(view.buffer);
}

function registerNumber(register: Register | 'map'): number {
  return register === 'map' ? MAP_DESCRIPTOR : Number(register.slice(1));
}
