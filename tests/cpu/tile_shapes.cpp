// The shapes of AMX's tile registers as a caller of the op sets and sees them.
struct alignas(64) Shapes {
  unsigned char bytes[64];
};

// The first register as `rows` rows of 32 bytes.
extern "C" void set_shapes(int rows) {
  Shapes shapes{};
  shapes.bytes[0] = 1;
  shapes.bytes[16] = 32;
  shapes.bytes[48] = static_cast<unsigned char>(rows);
  asm volatile("ldtilecfg %0" ::"m"(shapes));
}

// Rows of the first register, 0 where all of them are released.
extern "C" int rows() {
  Shapes shapes;
  asm volatile("sttilecfg %0" : "=m"(shapes));
  asm volatile("tilerelease");
  return shapes.bytes[48];
}
