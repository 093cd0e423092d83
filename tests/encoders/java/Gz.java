// Gz.java: the JDK's GZIPOutputStream: standard input to output.
import java.util.zip.GZIPOutputStream;

public class Gz {
    public static void main(String[] arguments) throws Exception {
        try (GZIPOutputStream out = new GZIPOutputStream(System.out)) {
            System.in.transferTo(out);
        }
    }
}
